"""Reads messages with Python's email package: `show_mail.py MESSAGE...` prints one JSON object per line."""
import email
import email.policy
import hashlib
import json
import sys

for path in sys.argv[1:]:
    message = email.message_from_bytes(open(path, "rb").read(), policy=email.policy.default)
    text = message.get_body(("plain",))
    attachments = {
        part.get_filename(): hashlib.sha256(part.get_payload(decode=True)).hexdigest()
        for part in message.iter_attachments()
    }
    print(
        json.dumps(
            {
                "subject": str(message["Subject"]),
                "from": str(message["From"]),
                "message_id": str(message["Message-ID"]),
                "date": str(message["Date"]),
                "text": None if text is None else text.get_content().replace("\r\n", "\n"),
                "encoding": None if text is None else str(text["Content-Transfer-Encoding"]),
                "attachments": attachments,
                "defects": [repr(defect) for part in message.walk() for defect in part.defects],
            }
        )
    )
