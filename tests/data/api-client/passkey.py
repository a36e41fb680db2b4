"""An authenticator that knows nothing of postern sets up a passkey over the API and logs in with it.

Arguments: the API's address, an e-mail address, its password, the origin people's browsers would show.
"""

import base64
import json
import ssl
import sys
import urllib.error
import urllib.request

from soft_webauthn import SoftWebauthnDevice

address, email, password, origin = sys.argv[1:]
# The daemon's certificate is its own; what is tried here is what is inside.
anyone = ssl.create_default_context()
anyone.check_hostname = False
anyone.verify_mode = ssl.CERT_NONE


def ask(path, body, session=None):
    """Posts `body`; the status, the answer, and the session it began or already has."""
    request = urllib.request.Request(f"{address}/api/v1{path}", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    if session:
        request.add_header("Cookie", session[0])
        request.add_header("X-CSRF-Token", session[1])
    try:
        with urllib.request.urlopen(request, context=anyone) as answer:
            told, cookie = json.load(answer), answer.headers.get("Set-Cookie")
            if cookie:
                session = (cookie.split(";")[0], told["csrf_token"])
            return answer.status, told, session
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused), session


def read(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def written(made):
    """As a browser's `toJSON` writes it: octets in base64url."""
    if isinstance(made, dict):
        return {name: written(value) for name, value in made.items()}
    if isinstance(made, bytes):
        return base64.urlsafe_b64encode(made).decode().rstrip("=")
    return made


def answered(options, answer):
    """What the device answers, its id without the padding that browsers leave out."""
    options = {**options, "challenge": read(options["challenge"])}
    if "user" in options:
        options["user"] = {**options["user"], "id": read(options["user"]["id"])}
    made = written(answer({"publicKey": options}, origin))
    return {**made, "id": made["rawId"]}


device = SoftWebauthnDevice()
login = {"email": email, "password": password}

status, told, session = ask("/session", login)
assert status == 201, told
status, told, _ = ask("/session/passkeys/offer", {}, session)
assert status == 200, told
new = {"name": "software", "credential": answered(told["public_key"], device.create)}
status, told, _ = ask("/session/passkeys", new, session)
assert status == 201 and len(told["recovery_codes"]) == 10, told

status, told, _ = ask("/session", login)
assert (status, told["code"]) == (401, "second_factor_required"), told
proof = answered(told["passkey"], device.get)
status, told, session = ask("/session", {**login, "passkey": proof})
assert status == 201 and told["user"]["passkeys"] == 1, told
status, told, _ = ask("/session", {**login, "passkey": proof})
assert (status, told["code"]) == (401, "wrong_credentials"), told

status, told, _ = ask("/session/confirm", {}, session)
assert (status, told["code"]) == (401, "second_factor_required"), told
status, told, _ = ask("/session/confirm", {"passkey": answered(told["passkey"], device.get)}, session)
assert status == 200, told

status, told, _ = ask("/session", login)
origin = "https://evil.example"
status, told, _ = ask("/session", {**login, "passkey": answered(told["passkey"], device.get)})
assert (status, told["code"]) == (401, "wrong_credentials"), told
print("passkey used", device.sign_count, "times")
