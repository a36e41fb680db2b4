#!/usr/bin/env bash
# swaks; see README.md for the arguments. It does not verify certificates.
set -u
host=$1 port=$2 way=$3 login=$5 password=$6 from=$7 to=$8 subject=$9 text=${10} attachment=${11:-}
tls=(--tls); [ "$way" = tls ] && tls=(--tls-on-connect)
# It sends header fields as they are given.
encoded="=?UTF-8?B?$(printf %s "$subject" | base64 -w0)?="
parts=(--body "@$text")
if [ -n "$attachment" ]; then
  parts=(--attach-type "text/plain; charset=UTF-8" --attach-body "@$text" --attach-type application/pdf
    --attach-name "$(basename "$attachment")" --attach "@$attachment")
else
  parts+=(--add-header "MIME-Version: 1.0" --add-header "Content-Type: text/plain; charset=UTF-8"
    --add-header "Content-Transfer-Encoding: 8bit")
fi
exec swaks --server "$host" --port "$port" "${tls[@]}" --auth PLAIN --auth-user "$login" --auth-password "$password" \
  --ehlo client.test --from "$from" --to "$to" --header "Subject: $encoded" "${parts[@]}"
