"""Verifies each signature of each message with dkimpy: `verify_dkim.py ZONE MESSAGE...`.

ZONE has lines `name<TAB>text`. Prints one line per message: a verdict for each signature.
"""
import sys

import dkim

zone = dict(line.rstrip("\n").split("\t", 1) for line in open(sys.argv[1], encoding="ascii"))


def text(name, timeout=5):
    name = name.decode("ascii") if isinstance(name, bytes) else name
    return zone.get(name.rstrip("."), "").encode("ascii")


for path in sys.argv[2:]:
    message = open(path, "rb").read()
    count = sum(1 for name, _ in dkim.rfc822_parse(message)[0] if name.lower() == b"dkim-signature")
    verdicts = []
    for index in range(count):
        try:
            verdicts.append("pass" if dkim.DKIM(message).verify(idx=index, dnsfunc=text) else "fail")
        except dkim.DKIMException as error:
            verdicts.append("fail:" + type(error).__name__)
    print(" ".join(verdicts))
