"""Verifies requests of webhooks with the Standard Webhooks library for Python.

Reads JSON lines from standard input: {"secret", "headers", "body", "good"}; prints one line for each that
is not judged as `good` says, then how many were judged.
"""
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

count = 0
for line in sys.stdin:
    case = json.loads(line)
    count += 1
    try:
        Webhook(case["secret"]).verify(case["body"], case["headers"])
        good = True
    except WebhookVerificationError:
        good = False
    if good != case["good"]:
        print("wrong:", case)
print("judged:", count)
