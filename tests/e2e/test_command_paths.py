"""Servers of an operator's own, through the daemon: each is asked on the paths that its own profile gives."""

from __future__ import annotations

import json
import sys

from tests.e2e.box import Box, until

SERVER = """
import http.server, os, socketserver, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path in sys.argv[2:]
        body = f'vllm:num_requests_running{{}} {sys.argv.index(self.path)}.0\\n'.encode() if known else b''
        self.send_response(200 if known else 404)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
    def address_string(self): return ''
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Server(sys.argv[1], Answers).serve_forever()
"""


def command(health_path: str, metrics_path: str) -> str:
    """A server that answers on these two paths and no other; the second one's figure is 3 running requests."""
    argv = [sys.executable, "-c", SERVER, "{socket}", health_path, metrics_path]
    return (
        f'model = "m{health_path}"\nengine = "command"\nreplicas = 1\n[command]\nargv = {json.dumps(argv)}\n'
        f'health_path = "{health_path}"\nmetrics_path = "{metrics_path}"\n'
    )


def test_two_commands_are_each_asked_on_their_own_paths(box: Box) -> None:
    box.up({"one": command("/ready", "/figures"), "two": command("/alive", "/numbers")})

    def running() -> bool:
        return [box.replica(name)["running"] for name in ("one-0", "two-0")] == [3, 3]

    box.wait_state("one-0", "READY", rotation="in")
    box.wait_state("two-0", "READY", rotation="in")
    until(running, "both figures", 30)
