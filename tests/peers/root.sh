#!/usr/bin/env bash
# Makes a copy-on-write view of the machine's root with extra Debian packages in it, so that mail
# servers that exclude each other as packages can be tried, and none is installed on the machine.
#
#   root.sh make  FOLDER PACKAGE...   fills FOLDER/upper (once; needs the package registry)
#   root.sh mount FOLDER              mounts it at FOLDER/root
#
# Run it as root inside a mount namespace of its own (unshare --mount): nothing has to be unmounted.
set -eu
what=$1 folder=$2; shift 2

mount_root() {
  mkdir -p "$folder/upper" "$folder/work" "$folder/root"
  mount -t overlay "peer" -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
  mount --bind /proc "$folder/root/proc"
  mount --rbind /dev "$folder/root/dev"
  # A private /run and /tmp: sockets and pid files never reach the machine's.
  mount -t tmpfs run "$folder/root/run"
  mkdir -p "$folder/root/run/lock"
}

case $what in
  mount) mount_root ;;
  make)
    [ -e "$folder/made" ] && exit 0
    mount_root
    root=$folder/root
    # Package scripts start no daemons.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    cat /etc/resolv.conf > "$root/etc/resolv.conf.new"
    rm -f "$root/etc/resolv.conf"; mv "$root/etc/resolv.conf.new" "$root/etc/resolv.conf"
    install() {
      DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -q --no-install-recommends \
        -o Dpkg::Options::=--force-unsafe-io "$@"
    }
    # Old package lists name files that are gone; a second try has new ones.
    install "$@" || { chroot "$root" apt-get update -q; install "$@"; }
    touch "$folder/made"
    ;;
  *) echo "usage: root.sh make|mount FOLDER [PACKAGE...]" >&2; exit 2 ;;
esac
