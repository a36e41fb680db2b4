"""A whole postern on loopback for the attack tools: the real binary, DNS, sinks, two tenants.

Nothing here believes a tool or the daemon: a sink keeps every octet as it came off the wire.
"""

import atexit
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time

HOST = "127.0.0.1"
NAME = "mx.shop.test"
# Tenant shop owns the first domain, and a login; the second is another tenant's.
OWN, FOREIGN = "shop.test", "bank.test"
SINK = "127.0.0.2"
CONFIG = """
hostname = "{name}"
data = "{folder}/data"
allow_root = true
[tls]
certificates = "{folder}/certificates"
[secrets]
master_key = "{folder}/master.key"
[submission]
tls_ports = [{tls}]
starttls_ports = [{starttls}]
bare_line_ends = "{bare}"
[feedback]
door = "on"
ports = [{returns}]
[queue]
retry_first = "10s"
retry_max = "1m"
[delivery]
port = {mx}
private_addresses = "allow"
[dns]
servers = ["{dns}"]
[store]
free_bytes_min = "16 MiB"
[admin]
socket = "{folder}/admin.sock"
group = ""
listen = ["127.0.0.1:{admin}"]
[monitor]
listen = ""
[log]
level = "warn"
"""


def wait_for(what, is_so, seconds=30):
    """Until `is_so()`; what it gives, or an error that says what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = is_so()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {seconds} s")


def free_port(host=HOST):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Zone(threading.Thread):
    """Answers A, MX and TXT over UDP from a table; NXDOMAIN for names that are not in it."""

    TYPES = {1: "A", 15: "MX", 16: "TXT"}

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.address = "%s:%d" % self.socket.getsockname()
        self.records = {}
        self.start()

    def add(self, name, kind, value):
        self.records.setdefault(name.lower(), []).append((kind, value))

    def host(self, name, address):
        """Mail for `name` goes to `address`."""
        self.add(name, "MX", "mx." + name)
        self.add("mx." + name, "A", address)

    def text(self, name):
        return "".join(value for kind, value in self.records.get(name.lower(), []) if kind == "TXT")

    def asked(self, name, **_):
        """The same for a DKIM verifier."""
        return self.text(name.decode().rstrip(".")).encode()

    @staticmethod
    def name(text):
        return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"

    def data(self, kind, value):
        if kind == "A":
            return socket.inet_aton(value)
        if kind == "MX":
            return struct.pack("!H", 10) + self.name(value)
        parts = [value[at:at + 255].encode() for at in range(0, len(value), 255)]
        return b"".join(bytes([len(part)]) + part for part in parts)

    def run(self):
        while True:
            query, peer = self.socket.recvfrom(4096)
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1"))
                at += 1 + query[at]
            asked = struct.unpack("!H", query[at + 1:at + 3])[0]
            known = self.records.get(".".join(labels).lower())
            found = [self.data(kind, value) for kind, value in known or [] if kind == self.TYPES.get(asked)]
            flags = 0x8580 | (0 if known else 3)
            head = query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + query[12:at + 5]
            answers = (b"\xc0\x0c" + struct.pack("!HHIH", asked, 1, 1, len(data)) + data for data in found)
            self.socket.sendto(head + b"".join(answers), peer)


class Sink(threading.Thread):
    """Takes every message; keeps (MAIL's line, text as on the wire, dots still stuffed)."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.listener = socket.create_server(address)
        self.taken = []
        self.start()

    def run(self):
        while True:
            stream, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        lines, mail = stream.makefile("rb"), b""
        stream.sendall(b"220 sink\r\n")
        while line := lines.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                stream.sendall(b"354 go\r\n")
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    octet = lines.readline()
                    if not octet:
                        return
                    text += octet
                self.taken.append((mail, text))
            elif verb == b"MAIL":
                mail = line
            stream.sendall(b"250-sink\r\n250 8BITMIME\r\n" if verb == b"EHLO" else b"250 2.0.0 ok\r\n")


def faults(text):
    """What another reader could take for the end of this message, or for something else than we do."""
    body = text[:-5]
    found = []
    if re.search(rb"\r(?!\n)|(?<!\r)\n|\0", text):
        found.append("bare CR or LF, or NUL")
    if re.search(rb"(^|[\r\n])\.([\r\n]|$)", body):
        found.append("a dot alone on a line")
    return found


class Trial:
    """The daemon with everything it stands on."""

    def __init__(self, binary, bare="normalise", key="ec"):
        self.binary = binary
        self.folder = tempfile.mkdtemp(prefix="postern-attack-")
        self.zone = Zone()
        ports = {name: free_port() for name in ("tls", "starttls", "returns", "admin")}
        ports["mx"] = free_port(SINK)
        self.ports = ports
        self.sink = Sink((SINK, ports["mx"]))
        self.zone.host("inbox.test", SINK)
        self.config = os.path.join(self.folder, "postern.toml")
        self.run("init", "--hostname", NAME, "--config-dir", self.folder, "--data-dir", self.folder + "/data")
        text = CONFIG.format(name=NAME, folder=self.folder, dns=self.zone.address, bare=bare, **ports)
        with open(self.config, "w") as file:
            file.write(text)
        self.certificate = self.make_certificate(key)
        self.log = open(os.path.join(self.folder, "daemon.log"), "wb")
        # Few heaps: what the C library keeps of freed memory for each thread would hide what grows.
        self.daemon = subprocess.Popen([binary, "serve", "--config", self.config], stderr=self.log, stdout=self.log,
                                       env={**os.environ, "MALLOC_ARENA_MAX": "2"})
        atexit.register(self.clean)
        wait_for("the daemon", lambda: self.is_open(self.folder + "/admin.sock"))
        self.furnish()

    def make_certificate(self, key):
        """For the name and the address, since some tools verify the address they were given."""
        folder = f"{self.folder}/certificates/{NAME}"
        os.makedirs(folder, exist_ok=True)
        certificate = folder + "/fullchain.pem"
        kind = ["rsa:2048"] if key == "rsa" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "30", "-subj", "/CN=" + NAME,
             "-addext", f"subjectAltName=DNS:{NAME},IP:{HOST}", "-keyout", folder + "/privkey.pem", "-out", certificate],
            check=True, capture_output=True)
        os.chmod(folder + "/privkey.pem", 0o600)
        return certificate

    @staticmethod
    def is_open(path):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0

    def run(self, *arguments):
        """The command line; its output."""
        done = subprocess.run([self.binary, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"postern {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def tool(self, *arguments):
        return json.loads(self.run(*arguments, "--json", "--socket", self.folder + "/admin.sock") or "null")

    def furnish(self):
        for tenant, domain in (("shop", OWN), ("bank", FOREIGN)):
            self.tool("tenant", "add", tenant)
            for record in self.tool("domain", "add", tenant, domain)["records"]:
                if record["kind"] == "TXT":
                    self.zone.add(record["name"], "TXT", record["value"])
            self.tool("domain", "verify", tenant, domain)
        self.tool("vip", "add", HOST, "--ehlo", NAME, "--tenant", "shop")
        account = self.tool("smtp-account", "add", "shop")
        self.login, self.password = account["account"]["login"], account["password"]
        for port in ("tls", "starttls", "returns"):
            wait_for(f"port {port}", lambda port=port: not socket.socket().connect_ex((HOST, self.ports[port])))

    def client(self):
        """A client that has logged in."""
        context = ssl.create_default_context(cafile=self.certificate)
        client = smtplib.SMTP_SSL(HOST, self.ports["tls"], timeout=30, context=context)
        client.login(self.login, self.password)
        return client

    def hand_in(self, reverse_path, recipient, message):
        """Exactly these octets; the first refusal, or the reply to the message."""
        client = self.client()
        try:
            for command in (b"MAIL FROM:" + reverse_path, b"RCPT TO:<" + recipient.encode() + b">", b"DATA"):
                client.send(command + b"\r\n")
                code, text = client.getreply()
                if code >= 400:
                    return code, text.decode("utf-8", "replace")
            client.send(message + b"\r\n.\r\n")
            code, text = client.getreply()
            return code, text.decode("utf-8", "replace")
        finally:
            client.close()

    def settled(self):
        """Waits until nothing is due; what has arrived since the last time."""
        wait_for("an empty queue", lambda: not self.tool("queue", "list", "--tenant", "shop")["rows"])
        taken, self.sink.taken = self.sink.taken, []
        return taken

    def letters(self):
        """Letters to postmaster and others that the door for returned mail took."""
        return self.tool("mailbox", "list")["rows"]

    def memory(self):
        with open(f"/proc/{self.daemon.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) // 1024

    def clean(self):
        self.daemon.kill()
        self.daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self):
        """Stops it in order: a daemon that an attack has ended, or that does not stop, is an error."""
        ended = self.daemon.poll()
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(60) if ended is None else ended
        self.clean()
        if code:
            raise RuntimeError(f"the daemon ended with {code}")
