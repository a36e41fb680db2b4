#!/usr/bin/env bash
# Signs zones with Knot DNS, serves them at 127.0.0.54:53, and has unbound validate them at 127.0.0.53:53, both in
# the root that ../root.sh made of Debian's packages knot, knot-dnssecutils and unbound.
#
#   start.sh FOLDER ZONES
#
# ZONES/signed/NAME.zone are signed, and unbound is told their keys. So are ZONES/forged/NAME.zone; afterwards the
# digests of their TLSA records are changed, as somebody in between would. ZONES/unsigned/NAME.zone are served as they are.
# Run it as root in network, mount and process namespaces of their own: both daemons end with the namespace.
set -eu
folder=$1 zones=$2
here=$(cd "$(dirname "$0")" && pwd)
"$here/../root.sh" mount "$folder"
root=$folder/root
rm -rf "$root/var/zones"
mkdir -p "$root/var/zones/served" "$root/var/zones/keys" "$root/run/knot"
conf=$root/var/zones/knot.conf serving=$root/var/zones/serving.conf anchors=$root/var/zones/anchors
unbound=$root/var/zones/unbound.conf
: > "$anchors"

head_of() {
  printf 'server:\n    rundir: "/run/knot"\n    listen: 127.0.0.54@53\n'
  printf 'database:\n    storage: "/var/zones/keys"\n'
  printf 'log:\n  - target: stderr\n    any: warning\n'
}

{ head_of; printf 'policy:\n  - id: here\n    algorithm: ecdsap256sha256\nzone:\n'; } > "$conf"
{ head_of; printf 'zone:\n'; } > "$serving"
cat > "$unbound" << 'END'
server:
  interface: 127.0.0.53
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "/var/zones"
  pidfile: ""
  use-syslog: no
  do-not-query-localhost: no
  module-config: "validator iterator"
  trust-anchor-file: "/var/zones/anchors"
  local-zone: "test." nodefault
remote-control:
  control-enable: no
END

for file in "$zones"/{signed,forged,unsigned}/*.zone; do
  [ -e "$file" ] || continue
  name=$(basename "$file" .zone) kind=$(basename "$(dirname "$file")")
  printf '  - domain: %s\n    file: "/var/zones/served/%s.zone"\n' "$name" "$name" >> "$serving"
  printf 'stub-zone:\n  name: "%s"\n  stub-addr: 127.0.0.54\n' "$name" >> "$unbound"
  if [ "$kind" = unsigned ]; then cp "$file" "$root/var/zones/served/"; continue; fi
  cp "$file" "$root/var/zones/$name.zone"
  printf '  - domain: %s\n    file: "/var/zones/%s.zone"\n' "$name" "$name" >> "$conf"
  printf '    dnssec-signing: on\n    dnssec-policy: here\n' >> "$conf"
done

for file in "$zones"/{signed,forged}/*.zone; do
  [ -e "$file" ] || continue
  name=$(basename "$file" .zone)
  chroot "$root" kzonesign -c /var/zones/knot.conf -o /var/zones/served "$name" > "$folder/log" 2>&1 ||
    { cat "$folder/log" >&2; exit 1; }
  chroot "$root" keymgr -c /var/zones/knot.conf "$name" ds | grep ' 13 2 ' >> "$anchors"
done
for file in "$zones"/forged/*.zone; do
  [ -e "$file" ] || continue
  sed -i -E '/[[:space:]]RRSIG[[:space:]]/!s/(TLSA[[:space:]]+[0-9] [0-9] [0-9] )[0-9A-F]{8}/\1DEADBEEF/' \
    "$root/var/zones/served/$(basename "$file")"
done

setsid chroot "$root" knotd -c /var/zones/serving.conf > "$folder/knot.log" 2>&1 < /dev/null &
setsid chroot "$root" unbound -d -c /var/zones/unbound.conf > "$folder/unbound.log" 2>&1 < /dev/null &
for _ in $(seq 300); do
  if (exec 3<> /dev/tcp/127.0.0.53/53) 2> /dev/null && (exec 3<> /dev/tcp/127.0.0.54/53) 2> /dev/null; then exit 0; fi
  sleep 0.1
done
echo "knot or unbound does not answer" >&2
tail -n 20 "$folder"/{knot,unbound}.log >&2
exit 1
