"""TLS as tlsfuzzer sees it, at the HTTPS port: the door at 465 has the same code and talks first, which upsets it."""

import re

import trial
from tools import Result, at_once, python, started
from trial import HOST

GCM_12 = ["-C", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
GCM_13 = ["-C", "TLS_AES_128_GCM_SHA256"]
# What rustls is known to do otherwise than a script expects. In the first two the connection is over, and nothing of
# what was sent counts.
ALERT = "refused with another alert"
CLOSED = "refused by closing, without an alert"
IGNORED = "ignored, as RFC 8446 allows"
LATER = "answered together, or with the next data, as RFC 8446 s4.6.3 allows"
# RFC 8446 D.5 wants it refused; TLS 1.3 is agreed on by supported_versions all the same.
LEGACY = "taken: a legacy version of 0x0300 or less is not looked at"
LARGE = "taken: a first record may be 2 KiB over the limit"
KNOWN = "a range of unknown numbers that holds one which rustls knows"
ABSENT = "not offered here"

# Script: arguments, and why conversations whose name fits a regular expression may fail.
SCRIPTS = {
    "test-conversation": (GCM_12, {}),
    "test-connection-abort": (GCM_12, {}),
    "test-early-application-data": (GCM_12, {}),
    "test-fuzzed-ciphertext": (GCM_12, {}),
    "test-hello-request-by-client": (GCM_12, {}),
    "test-invalid-compression-methods": (GCM_12, {}),
    "test-invalid-content-type": (GCM_12, {}),
    "test-cve-2016-6309": (GCM_12, {}),
    "test-renegotiation-disabled": (GCM_12, {}),
    "test-no-mlkem-in-old-tls": (GCM_12, {}),
    "test-version-numbers": (GCM_12, {}),
    "test-zero-length-data": (GCM_12, {}),
    "test-sslv2-connection": ([], {}),
    "test-sslv2-force-cipher": ([], {}),
    "test-sslv2-force-cipher-3des": ([], {}),
    "test-sslv2-force-cipher-non3des": ([], {}),
    "test-sslv2-force-export-cipher": ([], {}),
    "test-ccs": (GCM_12, {"two bytes long CCS": ALERT}),
    "test-invalid-client-hello-w-record-overflow": (GCM_12, {r"Client Hello type fuzz to \d+": ALERT}),
    "test-interleaved-CKE-with-CCS": (GCM_12, {".*interleaved ClientKeyExchange fragment": CLOSED}),
    "test-cve-2004-0079": (GCM_12, {".*interleaved ClientHello fragment": CLOSED}),
    "test-truncating-of-client-hello": (GCM_12, {"(big|huge|max) pad.*": CLOSED}),
    "test-point-extension": (GCM_12, {"Check if .*": ABSENT}),
    "test-tls13-conversation": (GCM_13, {}),
    "test-tls13-unencrypted-alert": (GCM_13, {}),
    "test-tls13-ccs": ([], {}),
    "test-tls13-hrr": ([], {}),
    "test-tls13-invalid-ciphers": ([], {}),
    "test-tls13-nociphers": ([], {}),
    "test-tls13-count-tickets": ([], {}),
    "test-tls13-record-padding": ([], {}),
    "test-tls13-keyshare-omitted": ([], {"key_share extension omitted": ALERT}),
    "test-tls13-finished": ([], {"(empty|padding|truncation) .*": ALERT}),
    "test-tls13-finished-plaintext": ([], {"Unencrypted Finished message": ALERT}),
    "test-tls13-empty-alert": ([], {"empty alert.*": ALERT}),
    "test-tls13-record-layer-limits": ([], {"too big ClientHello .*": LARGE, "(too big|max size) .*": ALERT}),
    "test-tls13-keyupdate": ([], {".*appdata between": CLOSED, "multiple KeyUpdate.*|app data split.*": LATER}),
    "test-tls13-zero-length-data": ([], {".*interleaved in handshake": CLOSED}),
    "test-tls13-zero-content-type": ([], {"zero content type.*": CLOSED}),
    "test-tls13-multiple-ccs-messages": ([], {".*CCS.*": IGNORED}),
    "test-tls13-legacy-version": ([], {r"version \(\d+, \d+\)": LEGACY}),
    "test-tls13-large-number-of-extensions": ([], {".*unassigned extensions.*": KNOWN}),
    "test-tls13-no-unknown-groups": (GCM_13, {".*unknown .between 4356 and 4611.": KNOWN}),
    "test-tls13-symetric-ciphers": ([], {".*_CCM_.*": ABSENT}),
}


def tlsfuzzer(clone, binary):
    """Each script's sanity conversation is its control: it must pass."""
    t = trial.Trial(binary, key="rsa")
    scripts = {name: of for name, of in SCRIPTS.items() if (clone / "scripts" / f"{name}.py").exists()}

    def run(name, arguments):
        return started(python(clone / "scripts" / f"{name}.py", "-h", HOST, "-p", t.ports["admin"], *arguments), clone,
                       PYTHONPATH=str(clone))

    said = at_once(*((run, name, of[0]) for name, of in scripts.items()), workers=3)
    conversations, found, known = 0, [], {}
    for (name, (_, reasons)), text in zip(scripts.items(), said):
        counts = dict(re.findall(r"^(TOTAL|PASS): (\d+)", text, re.M))
        if not counts:
            found.append(f"{name} did not run: {text[-300:]}")
            continue
        conversations += int(counts["TOTAL"])
        listed = re.search(r"^FAILED:\n((?:\t.*\n)*)", text, re.M)
        failed = [line.strip().strip("'\"") for line in listed.group(1).splitlines()] if listed else []
        for case in failed:
            reason = next((reason for expected, reason in reasons.items() if re.fullmatch(expected, case)), None)
            if reason:
                known[reason] = known.get(reason, 0) + 1
            else:
                found.append(f"{name}: {case}")
    counts = ", ".join(f"{count} {reason}" for reason, count in known.items())
    yield Result(f"{len(scripts)} scripts at the HTTPS port", conversations, f"all but: {counts}", found)
    t.close()


TOOLS = {"tlsfuzzer": tlsfuzzer}
