#!/usr/bin/env bash
# msmtp, given a finished message by standard input as sendmail would be; see README.md for the arguments.
set -u
host=$1 port=$2 way=$3 cafile=$4 login=$5 password=$6 from=$7 to=$8 subject=$9 text=${10} attachment=${11:-}
starttls=on; [ "$way" = tls ] && starttls=off
message() {
  printf 'From: %s\nTo: %s\nSubject: =?UTF-8?B?%s?=\nMIME-Version: 1.0\n' "$from" "${to//,/, }" "$(printf %s "$subject" | base64 -w0)"
  if [ -z "$attachment" ]; then
    printf 'Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n'
    cat "$text"
    return
  fi
  printf 'Content-Type: multipart/mixed; boundary="=-part"\n\n--=-part\n'
  printf 'Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n'
  cat "$text"
  printf '\n--=-part\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\n'
  printf 'Content-Disposition: attachment; filename="%s"\n\n' "$(basename "$attachment")"
  base64 "$attachment"
  printf '%s\n' '--=-part--'
}
# shellcheck disable=SC2086
message | msmtp --file=/dev/null --host="$host" --port="$port" --auth=plain --tls=on --tls-starttls="$starttls" \
  --tls-trust-file="$cafile" --user="$login" --passwordeval="printf %s '$password'" --from="$from" ${to//,/ }
