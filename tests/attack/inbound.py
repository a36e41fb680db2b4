"""Clients that attack the doors: what they hid is looked for at the sink."""

import base64
import importlib.util
import json
import re

import trial
from tools import Absent, Result, at_once, python, started
from trial import FOREIGN, HOST, NAME, OWN

INBOX = "anna@inbox.test"
# Whoever has no login may write to this address at the door for returned mail.
POSTMASTER = f"postmaster@{NAME}"
BARE_LINE_ENDS = ("normalise", "refuse")


def field(text, name):
    found = re.search(rb"(?im)^%s: *(.*?)\r\n" % name, text)
    return found.group(1).decode("utf-8", "replace") if found else ""


def hidden(taken, sent):
    """What arrived beside the `sent` messages, each known by reverse-path and subject; and odd line ends."""
    found = [why for _, text in taken for why in trial.faults(text)]
    keys = [mail.strip().decode("latin-1") + " " + field(text, b"Subject") for mail, text in taken]
    found += [f"hidden message: {key}" for key in keys if "smuggled" in key.lower()]
    if len(taken) > sent or len(set(keys)) < len(keys):
        found.append(f"{len(taken)} arrived of {sent}")
    return found


def hidden_letters(letters, sent):
    """The same of what the door for returned mail took."""
    found = [f"hidden message: {letter}" for letter in letters if "smuggled" in json.dumps(letter).lower()]
    return found + ([f"{len(letters)} arrived of {sent}"] if len(letters) > sent else [])


def got_in(arrived, bare):
    """Where bare line ends are mended, nothing at all means that the attack was refused for another reason."""
    return [] if arrived or bare == "refuse" else ["nothing arrived: this was no attack"]


# The scanner's inbound mode knows no login: this gives it one, so that what it hides would be a tenant's own mail.
WITH_LOGIN = """
import runpy, smtplib, sys
login, sys.argv = sys.argv[1:3], sys.argv[3:]
send = smtplib.SMTP.sendmail
smtplib.SMTP.sendmail = lambda self, *given: (self.login(*login), send(self, *given))[1]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def smuggling_scanner(clone, binary):
    """Octets that look like an end of the message and are none."""
    scanner = clone / "smtp_smuggling_scanner.py"
    for bare in BARE_LINE_ENDS:
        t = trial.Trial(binary, bare)
        inside = ["-p", t.ports["starttls"], "--starttls"]
        inbound = ["--inbound-smtp-server", HOST, "--sender-domain", OWN]
        outbound = ["--outbound-smtp-server", HOST, "--sender-address", f"outbound@{OWN}",
                    "--username", t.login, "--password", t.password]
        said = at_once(
            (started, python(scanner, INBOX, *outbound, *inside), clone),
            (started, python("-c", WITH_LOGIN, t.login, t.password, scanner, INBOX, *inbound, *inside), clone),
            (started, python(scanner, POSTMASTER, *inbound, "-p", t.ports["returns"]), clone))
        taken, letters = t.settled(), t.letters()
        found = hidden(taken, 16) + [f"did not run: {text[-300:]}" for text in said if "smuggling check" not in text]
        found += got_in(taken, bare)
        yield Result(f"9 endings, and 7 before a second message ({bare})", 16, f"{len(taken)} arrived", found)
        yield Result(f"7 at the door for returned mail ({bare})", 7, f"{len(letters)} arrived",
                     hidden_letters(letters, 7) + got_in(letters, bare))
        t.close()


def smtpsmug(clone, binary):
    """More such endings, one connection each, over implicit TLS."""
    program = clone / "smtpsmug"
    tests = re.findall(r'^"(\w+):"', started(python(program, "--list-tests"), clone), re.M)
    for bare in BARE_LINE_ENDS:
        t = trial.Trial(binary, bare)

        def case(test):
            return started(python(program, "-s", "--port", t.ports["tls"], "-u", t.login, "-p", t.password, "-c", test,
                                  "-f", f"{test}@{OWN}", "-t", INBOX, HOST), clone, SSL_CERT_FILE=t.certificate)

        def returned(test):
            return started(python(program, "--port", t.ports["returns"], "-c", test, "-f", f"{test}@peer.test",
                                  "-t", POSTMASTER, HOST), clone)

        said = at_once(*((case, test) for test in tests))
        taken = t.settled()
        # The probe of pipelining sends two whole messages; all others one, or none.
        probe = [message for message in taken if b"<pipelining@" in message[0]]
        rest = [message for message in taken if b"<pipelining@" not in message[0]]
        found = hidden(rest, len(tests) - 1) + [why for _, text in probe for why in trial.faults(text)]
        found += [] if len(probe) == 2 else [f"pipelining: {len(probe)} of 2 arrived"]
        found += [f"did not run: {text[-200:]}" for text in said if "DATA" not in text]
        found += got_in(rest, bare)
        yield Result(f"with login ({bare})", len(tests), f"{len(rest)} + {len(probe)} arrived", found)
        at_once(*((returned, test) for test in tests))
        letters = t.letters()
        found = hidden_letters(letters, len(tests) + 1) + got_in(letters, bare)
        yield Result(f"at the door for returned mail ({bare})", len(tests), f"{len(letters)} arrived", found)
        t.close()


def command_injection(clone, binary):
    """Commands sent together with STARTTLS, before the handshake."""
    t = trial.Trial(binary)
    for port, door in (("starttls", "submission"), ("returns", "returned mail")):
        said = started(python(clone / "command-injection-tester", "--smtp", "--smtp-port", t.ports[port], "--nocolor",
                              "--timeout", "1", "--logdir", t.folder, HOST), clone)
        is_fine = "Sanity test done" in said and "Probably no command injection here" in said
        yield Result(f"STARTTLS, {door}", 1, "no answer to what came before", [] if is_fine else [said[-300:]])
    t.close()


# Its messages as they would leave, for a client of ours to hand in with a login.
SERVER_CASES = """
import base64, copy, json, sys
sys.path.insert(0, ".")
import config, testcases
from exploits_builder import ExploitsBuilder
found = {}
for name in list(testcases.test_cases):
    if name.startswith("server"):
        settings = {**config.config, **eval(sys.argv[1]), "case_id": name.encode(), "mode": "s"}
        made = ExploitsBuilder(copy.deepcopy(testcases.test_cases), settings).generate_smtp_seqs()
        found[name] = [base64.b64encode(made[key]).decode() for key in ("mailfrom", "msg_content")]
print(json.dumps(found))
"""

# It takes the login for the address it attacks from; here they differ.
CLIENT_CASE = """
import sys
sys.path.insert(0, ".")
import config
from common.mail_sender import MailSender
case, sites, account, login = sys.argv[1], *map(eval, sys.argv[2:])
config.config.update(sites)
config.config["client_mode"].update(account)
set_param = MailSender.set_param
MailSender.set_param = lambda self, *given, **named: set_param(self, *given, **{**named, **login})
sys.argv = ["espoofer.py", "-m", "c", "-id", case]
import espoofer
espoofer.main()
"""


def spoofed(t, text):
    """Why this is not plainly mail of the account's own domain; nothing if it is."""
    import dkim
    head = re.sub(rb"\r\n[ \t]+", b" ", text.split(b"\r\n\r\n")[0] + b"\r\n")
    own = rb"[\w.+-]+@" + re.escape(OWN.encode())
    plain = re.compile(rb'\s*(?:"?[\w .]*"?\s*<%s>|%s)\s*' % (own, own))
    values = re.findall(rb"(?im)^\W*(?:from|sender|resent-from|resent-sender)\W*?:(.*)$", head)
    found = [f"says {value.decode('latin-1').strip()!r}" for value in values if not plain.fullmatch(value)]
    if len(re.findall(rb"(?im)^\W*from\W*?:", head)) != 1:
        found.append("not one From")
    message = text[:-3].replace(b"\r\n..", b"\r\n.")
    signatures = re.findall(rb"(?im)^dkim-signature:(.*)$", head)
    good = [at for at in range(len(signatures)) if dkim.DKIM(message).verify(at, dnsfunc=t.zone.asked)]
    if not any(b"d=%s;" % OWN.encode() in signatures[at] for at in good):
        found.append("no good signature of the own domain")
    return found


def control(t):
    """An honest message must arrive and pass; the same with another author must not."""
    code, reply = t.hand_in(f"<any@{OWN}>".encode(), INBOX, b"From: Shop <any@%s>\r\n\r\nhello" % OWN.encode())
    texts = [text for _, text in t.settled()]
    found = [f"refused: {code} {reply}"] if len(texts) != 1 else [why for text in texts for why in spoofed(t, text)]
    for text in texts:
        forged = text.replace(b"From: Shop <any@" + OWN.encode(), b"From: Shop <any@" + FOREIGN.encode())
        found += [] if len(spoofed(t, forged)) == 2 else ["a forged message is not recognised"]
    return Result("control: an honest message and a forged copy", 1, f"{len(texts)} arrived", found)


def espoofer(clone, binary):
    """Mail that names somebody else as its author."""
    if importlib.util.find_spec("dkim") is None:
        raise Absent("no module dkim (dkimpy); it judges what arrives")
    t = trial.Trial(binary)
    sites = {"attacker_site": OWN.encode(), "legitimate_site_address": f"admin@{FOREIGN}".encode(),
             "victim_address": INBOX.encode()}
    yield control(t)
    made = json.loads(started(python("-c", SERVER_CASES, repr(sites)), clone).splitlines()[-1])
    for way in ("its reverse-path", "a reverse-path of ours"):
        refused, found = 0, []
        for reverse_path, message in made.values():
            path = base64.b64decode(reverse_path) if way.startswith("its") else f"<any@{OWN}>".encode()
            refused += t.hand_in(path, INBOX, base64.b64decode(message))[0] >= 400
        taken = t.settled()
        for _, text in taken:
            found += [f"{field(text, b'Subject')}: {why}" for why in spoofed(t, text)]
        yield Result(f"its messages, {way}", len(made), f"{refused} refused, {len(taken)} arrived", found)
    account = {"sending_server": (HOST, t.ports["starttls"]), "username": f"attacker@{OWN}".encode()}
    login = {"username": t.login.encode(), "password": t.password.encode()}
    arguments = [repr(value) for value in (sites, account, login)]
    said = at_once(*((started, python("-c", CLIENT_CASE, f"client_a{at}", *arguments), clone) for at in (1, 2, 3)))
    taken = t.settled()
    found = [why for _, text in taken for why in spoofed(t, text)]
    if any("has no attribute 'wrap_socket'" in text for text in said):
        raise Absent("its logged-in client needs Python 3.11 or older; its messages ran")
    found += [f"it did not log in: {text[-300:]}" for text in said if "235" not in text]
    yield Result("logged-in client", 3, f"{len(taken)} arrived", found)
    t.close()


TOOLS = {
    "SMTP-Smuggling-Tools": smuggling_scanner,
    "smtpsmug": smtpsmug,
    "command-injection-tester": command_injection,
    "espoofer": espoofer,
}
