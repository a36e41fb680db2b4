# Sourced by ../start.
sed "s/@ADDRESS@/$address/" "$here/opensmtpd/smtpd.conf" > "$root/etc/smtpd.conf"
# What an earlier test left undelivered is not mail of this one.
rm -rf "$root"/var/spool/smtpd/{queue,incoming,corrupt}/*
setsid chroot "$root" smtpd -d > "$folder/log" 2>&1 < /dev/null &
