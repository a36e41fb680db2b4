"""Reads a delivery status notification with Python's email package and prints what it found."""
import email
import email.policy
import sys

message = email.message_from_bytes(open(sys.argv[1], "rb").read(), policy=email.policy.default)
assert message.get_content_type() == "multipart/report", message.get_content_type()
assert message.get_param("report-type") == "delivery-status"
assert not message.defects, message.defects
parts = list(message.iter_parts())
text, status, original = parts
assert not any(part.defects for part in parts)
groups = status.get_payload()
print("about:", groups[0]["Reporting-MTA"], groups[0]["Original-Envelope-Id"], groups[0]["Arrival-Date"])
for group in groups[1:]:
    fields = ["Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"]
    print("recipient:", " | ".join(" ".join(str(group[name]).split()) for name in fields))
returned = original.get_payload(0) if original.get_content_type() == "message/rfc822" else email.message_from_string(original.get_content())
print("original:", original.get_content_type(), returned["Subject"])
print("text:", text.get_content_type(), len(text.get_content().splitlines()) > 5)
