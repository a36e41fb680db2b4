# Sourced by ../start.
for file in main.cf master.cf; do
  sed "s/@ADDRESS@/$address/" "$here/postfix/$file" > "$root/etc/postfix/$file"
done
rm -f "$root/var/log/postfix.log" "$root/var/spool/postfix/pid/master.pid"
# What an earlier test left undelivered is not mail of this one.
for queue in incoming active deferred bounce defer maildrop; do
  rm -rf "$root/var/spool/postfix/$queue"/*
done
chroot "$root" postfix start > "$folder/log" 2>&1
