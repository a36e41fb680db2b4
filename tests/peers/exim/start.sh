# Sourced by ../start.
sed "s/@ADDRESS@/$address/" "$here/exim/exim4.conf" > "$root/etc/exim4/exim4.conf"
chroot "$root" chown root:Debian-exim /etc/peer/key.pem
chmod 640 "$root/etc/peer/key.pem" "$root/etc/exim4/exim4.conf"
chroot "$root" chown root:Debian-exim /etc/exim4/exim4.conf
chroot "$root" install -d -o Debian-exim -g adm /var/log/exim4
rm -f "$root"/var/log/exim4/*
# What an earlier test left undelivered is not mail of this one.
rm -rf "$root"/var/spool/exim4/{input,msglog,db}/*
setsid chroot "$root" exim4 -bdf -q1m > "$folder/log" 2>&1 < /dev/null &
