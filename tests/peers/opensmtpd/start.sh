# Sourced by ../start.
sed "s/@ADDRESS@/$address/" "$here/opensmtpd/smtpd.conf" > "$root/etc/smtpd.conf"
setsid chroot "$root" smtpd -d > "$folder/log" 2>&1 < /dev/null &
