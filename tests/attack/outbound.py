"""Mail exchangers that attack delivery: what each took is compared with what the daemon recorded."""

import json
import os
import pathlib
import shutil
import subprocess
import time

import mx
import trial
from tools import Absent, Result
from trial import OWN

# Not somebody else's: the peers of mx.py.
OWN_PEERS = "replies-without-end"

# How much the daemon may grow while peers talk without end.
GROWTH_MIB_MAX = 64
# A second message must still arrive beside all of them.
OTHERS_SECONDS_MAX = 10
# A handshake that is never answered is given up after two minutes.
VERDICT_SECONDS = 150
# The first retry comes after 10 s: time for several.
RETRIES_SECONDS = 45


def message(name):
    return f"From: Shop <orders@{OWN}>\r\nSubject: {name}\r\n\r\nhello".encode()


def send(t, names):
    """One message to each domain `NAME.test`; queue ids by name."""
    ids = {}
    for name in names:
        code, reply = t.hand_in(f"<orders@{OWN}>".encode(), f"ann@{name}.test", message(name))
        if code != 250:
            raise RuntimeError(f"{name}: {code} {reply}")
        ids[name] = reply.split()[-1]
    return ids


def history(t, queue_id):
    """Every attempt's status, and the last word about it as people see it."""
    shown = t.tool("messages", "show", queue_id)
    return [attempt["status"] for attempt in shown["attempts"]], shown["recipients"][0]["why"]


class Fates:
    """What became of the messages, counted; each by itself if details are asked for."""

    def __init__(self):
        self.counts = {}

    def add(self, what, attempts, why):
        """How often it was recorded as delivered."""
        fate = "delivered" if "ok" in attempts else attempts[-1] if attempts else "waiting for a reply"
        self.counts[fate] = self.counts.get(fate, 0) + 1
        if os.environ.get("POSTERN_ATTACK_DETAILS"):
            print(f"           {what}: {fate}, {len(attempts)} tries: {why}")
        return attempts.count("ok")

    def __str__(self):
        return ", ".join(f"{count} {fate}" for fate, count in sorted(self.counts.items()))


def beside(t):
    """A message to somebody else, while all of this goes on."""
    began = time.monotonic()
    t.hand_in(f"<orders@{OWN}>".encode(), "anna@inbox.test", message("beside"))
    trial.wait_for("the message beside them", lambda: t.sink.taken)
    took = time.monotonic() - began
    t.sink.taken.clear()
    return [f"another message took {took:.0f} s"] if took > OTHERS_SECONDS_MAX else []


class Fake:
    """One script of fake-mail-server at an address of its own."""

    def __init__(self, t, clone, program, script, address):
        self.folder = pathlib.Path(t.folder) / "fakes" / address
        self.folder.mkdir(parents=True)
        for part in ("certs", "mails", "testcases"):
            (self.folder / part).symlink_to(clone / part)
        ports = [f'{protocol}: "{address}:{port}"' for protocol, port in
                 (("smtp", t.ports["mx"]), ("pop3", 11000), ("imap", 14300))]
        (self.folder / "config.ron").write_text(f"({', '.join(ports)}, filter: Reject([]))")
        self.process = subprocess.Popen([program, "test-loop", "postern", "smtp", script], cwd=self.folder,
                                        env={**os.environ, "RUST_LOG": "info"}, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def facts(self):
        """How many sessions it had, messages it took, MAIL it heard in the clear, logins it was offered."""
        sessions = taken = clear = logins = 0
        for path in self.folder.glob("logs/*"):
            for line in path.read_text().splitlines():
                fields = json.loads(line)["fields"]
                said = fields.get("msg", "").upper() if fields["message"] == "read" else ""
                sessions += fields["message"] == "accept"
                taken += "Got Mail" in fields["message"]
                clear += "MAIL FROM" in said and not fields["tls"]
                logins += said.startswith("AUTH")
        return sessions, taken, clear, logins

    def stop(self):
        self.process.kill()
        self.process.wait()


def fake_mail_server(clone, binary):
    """Every script twice: where TLS is used if offered, and where the operator demands it."""
    built = (os.environ.get("FAKE_MAIL_SERVER"), *sorted(clone.glob("target/*/fake_mail_server")))
    program = next((path for path in built if path and os.access(path, os.X_OK)), None)
    if program is None:
        raise Absent("not built: cargo build in its folder")
    scripts = sorted(str(path.relative_to(clone)) for path in (clone / "testcases/smtp").rglob("*.ron"))
    for demand in ("opportunistic", "encrypted"):
        t = trial.Trial(binary)
        fakes = {}
        try:
            for at, script in enumerate(scripts, 1):
                address = f"127.0.3.{at}"
                fakes[f"s{at}"] = script, Fake(t, clone, program, script, address)
                t.zone.host(f"s{at}.test", address)
                if demand == "encrypted":
                    t.tool("tls", "set", f"s{at}.test", demand)
            yield from scripts_played(t, fakes, demand)
        finally:
            for _, fake in fakes.values():
                fake.stop()
        t.close()


def scripts_played(t, fakes, demand):
    before, fates = t.memory(), Fates()
    # For all of them to listen.
    time.sleep(2)
    ids = send(t, fakes)
    end = time.monotonic() + VERDICT_SECONDS
    while time.monotonic() < end and not all(history(t, ids[name])[0] for name in fakes):
        time.sleep(1)
    found = beside(t)
    time.sleep(RETRIES_SECONDS)
    for name, (script, fake) in fakes.items():
        delivered = fates.add(script, *history(t, ids[name]))
        sessions, taken, clear, logins = fake.facts()
        found += [] if sessions else [f"{script}: nobody came"]
        found += [f"{script}: it took {taken}, recorded {delivered}"] if taken != delivered or taken > 1 else []
        found += [f"{script}: mail in the clear"] if clear and demand == "encrypted" else []
        found += [f"{script}: a login"] if logins else []
    grown = t.memory() - before
    found += [f"the daemon grew by {grown} MiB"] if grown > GROWTH_MIB_MAX else []
    yield Result("TLS demanded" if demand == "encrypted" else "TLS if offered", len(fakes), str(fates), found)


def endless(_, binary):
    """Our own: replies without end at each stage, all at the same time."""
    t = trial.Trial(binary)
    peers = {}
    for row, stage in enumerate(mx.STAGES):
        for column, mode in enumerate(mx.MODES):
            name = f"{stage}-{column}".lower()
            address = f"127.0.5.{row * len(mx.MODES) + column + 1}"
            peers[name] = mx.Mx((address, t.ports["mx"]), stage, mode)
            t.zone.host(name + ".test", address)
    before, found, peak = t.memory(), [], 0
    ids = send(t, peers)
    for _ in range(6):
        found += beside(t)
        peak = max(peak, t.memory())
        time.sleep(5)
    fates = Fates()
    for name, peer in peers.items():
        what = f"{peer.mode} at {peer.stage}"
        delivered = fates.add(f"{what}, {peer.said} octets", *history(t, ids[name]))
        found += [f"{what}: it took {peer.taken}, recorded {delivered}"] if peer.taken != delivered else []
        is_whole = peer.mode == "reply by octets" or peer.stage == "QUIT"
        found += [f"{what}: {delivered} deliveries"] if delivered != is_whole or not peer.connections else []
    found += [f"the daemon grew by {peak - before} MiB"] if peak - before > GROWTH_MIB_MAX else []
    yield Result("at each stage, all at once", len(peers), f"{fates}; {peak - before} MiB more", found)
    t.close()


# Options of smtp-sink, and what must become of a message.
# A greeting or an EHLO that is refused is about us and never a reason to give a message up.
SINK_OPTIONS = {
    "-e": "ok", "-p": "ok", "-8": "ok", "-T 1024": "ok", "-w 1": "ok", "-W .:1": "ok", "-H 1": "ok", "-n 1": "ok",
    **{f"-q {stage}": "deferred" for stage in ("connect", "mail", "rcpt", "data", ".")},
    **{f"-Q {stage}": "deferred" for stage in ("connect", "mail", "rcpt", "data", ".")},
    **{f"-r {stage}": "deferred" for stage in ("connect", "mail", "rcpt", "data", ".")},
    "-f connect": "deferred", **{f"-f {stage}": "softbounce" for stage in ("mail", "rcpt", "data", ".")},
    "-q quit": "ok", "-f quit": "ok",
}


def smtp_sink(clone, binary):
    """Postfix's own sink, one for each option."""
    program = os.environ.get("SMTP_SINK") or shutil.which("smtp-sink")
    if program is None:
        raise Absent("no smtp-sink in PATH or SMTP_SINK")
    # It refuses to run as root, as it says.
    program = [program, *(("-u", "nobody") if os.geteuid() == 0 else ())]
    t, fates = trial.Trial(binary), Fates()
    processes, options = [], {}
    for at, option in enumerate(SINK_OPTIONS, 1):
        name, address = f"k{at}", f"127.0.4.{at}"
        options[name] = option
        t.zone.host(name + ".test", address)
        processes.append(subprocess.Popen([*program, *option.split(), f"{address}:{t.ports['mx']}", "10"],
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    time.sleep(1)
    try:
        ids = send(t, options)
        trial.wait_for("a verdict on each", lambda: all(history(t, ids[name])[0] for name in options), VERDICT_SECONDS)
        found = beside(t)
        for name, option in options.items():
            attempts, why = history(t, ids[name])
            fates.add(option, attempts, why)
            if attempts[0] != SINK_OPTIONS[option] or "(os error 111)" in why:
                found.append(f"{option}: {attempts[0]} where {SINK_OPTIONS[option]} was expected: {why}")
        yield Result("each of its options", len(options), str(fates), found)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    t.close()


TOOLS = {"fake-mail-server": fake_mail_server, "smtp-sink": smtp_sink, OWN_PEERS: endless}
