# Sourced by ../start.
for file in main.cf master.cf; do
  sed "s/@ADDRESS@/$address/" "$here/postfix/$file" > "$root/etc/postfix/$file"
done
rm -f "$root/var/log/postfix.log" "$root/var/spool/postfix/pid/master.pid"
chroot "$root" postfix start > "$folder/log" 2>&1
