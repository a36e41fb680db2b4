"""A mail exchanger whose reply at one stage has no end, or comes an octet at a time."""

import socket
import threading
import time

STAGES = ("banner", "EHLO", "MAIL", "RCPT", "DATA", "dot", "QUIT")
MODES = ("endless line", "endless lines", "1 GB line", "octets without end", "reply by octets")
POLITE = {"banner": b"220", "DATA": b"354", "QUIT": b"221"}
GIGABYTE = 1 << 30


class Mx(threading.Thread):
    """Polite but for `stage`, where it replies as `mode` says."""

    def __init__(self, address, stage, mode):
        super().__init__(daemon=True)
        self.listener = socket.create_server(address)
        self.stage, self.mode = stage, mode
        # Final dots seen, polite replies to them that went out whole, octets of the bad reply that found room.
        self.dots = self.taken = self.said = self.connections = 0
        self.start()

    def run(self):
        while True:
            stream, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        try:
            self.converse(stream)
        except OSError:
            pass
        finally:
            stream.close()

    def converse(self, stream):
        lines, is_text = stream.makefile("rb"), False
        self.reply(stream, "banner")
        for line in lines:
            if is_text:
                if line == b".\r\n":
                    is_text = False
                    self.dots += 1
                    self.reply(stream, "dot")
                    self.taken += 1
                continue
            verb = line[:4].decode("latin-1").strip().upper()
            self.reply(stream, verb)
            is_text = verb == "DATA"
            if verb == "QUIT":
                return

    def reply(self, stream, stage):
        code = POLITE.get(stage, b"250")
        polite = code + b" 2.0.0 ok\r\n"
        if stage != self.stage:
            stream.sendall(polite)
        elif self.mode == "reply by octets":
            self.drip(stream, polite)
        elif self.mode == "octets without end":
            self.drip(stream, code + b"-" + b"x" * GIGABYTE)
        elif self.mode == "endless lines":
            self.flood(stream, (code + b"-and another thing\r\n") * 4096, None)
        else:
            self.flood(stream, code + b" " + b"x" * 65532, GIGABYTE if self.mode == "1 GB line" else None)
            stream.sendall(b"\r\n")

    def drip(self, stream, octets):
        for at in range(len(octets)):
            stream.sendall(octets[at:at + 1])
            self.said += 1
            time.sleep(0.05)

    def flood(self, stream, piece, most):
        while most is None or self.said < most:
            self.said += stream.send(piece)
