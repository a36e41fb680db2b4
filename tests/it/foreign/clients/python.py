"""Python's smtplib; see README.md for the arguments."""
import smtplib
import ssl
import sys
from email.message import EmailMessage
from pathlib import Path

host, port, way, cafile, login, password, sender, recipients, subject, text, *attachment = sys.argv[1:]
message = EmailMessage()
message["From"], message["To"], message["Subject"] = sender, recipients.replace(",", ", "), subject
message.set_content(Path(text).read_text(encoding="utf-8"), cte="8bit" if not attachment else None)
for path in attachment:
    message.add_attachment(Path(path).read_bytes(), maintype="application", subtype="pdf", filename=Path(path).name)
trust = ssl.create_default_context(cafile=cafile)
if way == "tls":
    server = smtplib.SMTP_SSL(host, int(port), context=trust, timeout=30)
else:
    server = smtplib.SMTP(host, int(port), timeout=30)
    server.starttls(context=trust)
with server:
    server.login(login, password)
    refused = server.send_message(message, sender, recipients.split(","))
    assert not refused, refused
