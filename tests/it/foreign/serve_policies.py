#!/usr/bin/env python3
"""Serves MTA-STS policies over HTTPS: FOLDER/HOST is what https://HOST/.well-known/mta-sts.txt says.

    serve_policies.py ADDRESS CERTIFICATE KEY FOLDER
"""

import http.server
import pathlib
import ssl
import sys

address, certificate, key, folder = sys.argv[1:]


class Policies(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host = self.headers.get("Host", "").split(":")[0]
        file = pathlib.Path(folder) / pathlib.PurePath(host).name
        if self.path != "/.well-known/mta-sts.txt" or not file.is_file():
            self.send_error(404)
            return
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer((address, 443), Policies)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
