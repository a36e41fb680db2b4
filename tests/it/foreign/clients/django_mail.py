"""Django's mail, with the settings that `smtp-account add` prints; see README.md for the arguments."""
import os
import sys
from pathlib import Path

from django.conf import settings

host, port, way, cafile, login, password, sender, recipients, subject, text, *attachment = sys.argv[1:]
# Django verifies with Python's default roots; this is how a machine adds its own.
os.environ["SSL_CERT_FILE"] = cafile
settings.configure(
    EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
    EMAIL_HOST=host,
    EMAIL_PORT=int(port),
    EMAIL_USE_SSL=way == "tls",
    EMAIL_USE_TLS=way != "tls",
    EMAIL_HOST_USER=login,
    EMAIL_HOST_PASSWORD=password,
    EMAIL_TIMEOUT=30,
)
from django.core.mail import EmailMessage  # noqa: E402 (after the settings)

message = EmailMessage(subject, Path(text).read_text(encoding="utf-8"), sender, recipients.split(","))
for path in attachment:
    message.attach(Path(path).name, Path(path).read_bytes(), "application/pdf")
assert message.send() == 1
