"""`gpuserve route` as a process, in front of servers on TCP and on Unix sockets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.e2e.box import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


class Handler(BaseHTTPRequestHandler):
    """A small OpenAI-compatible server: /v1/models, and a chat that says who answered and what model was asked for."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/health" and not self.server.has_health:
            self._json({"error": "no such path"}, 404)
        elif self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": name} for name in self.server.models]})
        else:
            self._json({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not body.get("stream"):
            self._json({"by": self.server.name, "model": body["model"]})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(20):
            self.wfile.write(b'data: {"n": %d}\n\n' % number)
            self.server.streaming.set()
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "client"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """One server one runs oneself."""

    daemon_threads = True

    def __init__(self, name: str, where: Path | int, models: list[str], *, has_health: bool = True) -> None:
        self.name = name
        self.models = models
        self.has_health = has_health
        self.streaming = threading.Event()
        self.connections: list[socket.socket] = []
        self.where = where
        if isinstance(where, Path):
            self.address_family = socket.AF_UNIX
            super().__init__(str(where), Handler)  # type: ignore[arg-type]  # a Unix socket's address is its path
        else:
            super().__init__(("127.0.0.1", where), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        if self.address_family is not socket.AF_UNIX:
            self.server_address = self.socket.getsockname()

    @property
    def url(self) -> str:
        if isinstance(self.where, Path):
            return f"unix:{self.where}"
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted = super().get_request()
        self.connections.append(accepted[0])
        return accepted

    def stop(self) -> None:
        """As a process that ends: nobody listens, and every connection ends."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if isinstance(self.where, Path):
            self.where.unlink(missing_ok=True)


@dataclass
class Routes:
    """Servers, and routers in front of them."""

    dir: Path
    servers: list[Server] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = 0

    def server(self, name: str, *models: str, where: Path | int = 0, has_health: bool = True) -> Server:
        made = Server(name, where, list(models) or ["llama"], has_health=has_health)
        self.servers.append(made)
        return made

    def argv(self, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", "gpuserved.cli.main", "route", "--listen", f"127.0.0.1:{self.port}", *arguments,
        ]  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.port = free_port()
        with (self.dir / "log").open("ab") as log:
            process = subprocess.Popen(
                self.argv(*arguments), stdout=log, stderr=log, cwd=self.dir, env=self.env
            )
        self.processes.append(process)
        self.until(self._listens)
        return process

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "daemon"),
            "GPUSERVE_ROOT": str(self.dir),
            "TMPDIR": str(self.dir),
        }

    def _listens(self) -> bool:
        assert self.processes[-1].poll() is None, self.log
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=PATIENCE_S).status_code in {
                200,
                503,
            }
        except requests.ConnectionError:
            return False

    @property
    def log(self) -> str:
        return (self.dir / "log").read_text()

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def models(self) -> list[str]:
        answer = requests.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=PATIENCE_S).json()
        return [card["id"] for card in answer["data"]]

    def chat(self, model: str = "llama", **more: Any) -> requests.Response:
        return requests.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json={"model": model, "messages": [], **more.pop("body", {})}, timeout=PATIENCE_S, **more,
        )  # fmt: skip

    def answered_by(self, count: int = 8) -> set[str]:
        return {self.chat().json()["by"] for _ in range(count)}


@pytest.fixture
def routes(tmp_path: Path) -> Iterator[Routes]:
    made = Routes(tmp_path)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()
        for server in made.servers:
            server.stop()


def test_requests_are_spread_over_tcp_and_unix_servers(routes: Routes, tmp_path: Path) -> None:
    a = routes.server("a", "llama", "lora")
    b = routes.server("b", "llama", where=tmp_path / "b.sock")
    routes.start("--upstream", a.url, b.url)
    assert routes.models() == ["llama", "lora"]
    assert routes.answered_by() == {"a", "b"}
    answer = routes.chat("lora")
    assert answer.json() == {"by": "a", "model": "lora"}
    assert answer.headers["x-gpuserve-replica"] == a.url.removeprefix("http://")
    assert routes.chat("other").status_code == 404


def test_a_server_that_goes_costs_no_request_and_comes_back(routes: Routes, tmp_path: Path) -> None:
    a, path = routes.server("a"), tmp_path / "b.sock"
    b = routes.server("b", where=path)
    routes.start("--upstream", a.url, "--upstream", b.url)
    assert routes.answered_by() == {"a", "b"}
    b.stop()
    routes.servers.remove(b)
    assert routes.answered_by() == {"a"}, "no request is lost between its end and the next health check"
    routes.until(lambda: f"unix:{path}: down: nobody listens there" in routes.log)
    routes.server("b", where=path)
    routes.until(lambda: routes.answered_by() == {"a", "b"})


def test_a_server_without_a_health_check_is_watched_by_its_models(routes: Routes) -> None:
    a = routes.server("a", "ollama", has_health=False)
    routes.start("--upstream", a.url)
    assert routes.chat("ollama").json()["by"] == "a"


def test_a_server_that_is_not_there_yet_is_waited_for(routes: Routes, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    routes.start("--upstream", f"unix:{path}", "--model", "llama")
    answers: list[requests.Response] = []
    asking = threading.Thread(target=lambda: answers.append(routes.chat()))
    asking.start()
    routes.server("a", "/models/llama", where=path)
    asking.join(PATIENCE_S)
    assert [answer.json() for answer in answers] == [{"by": "a", "model": "/models/llama"}]


def test_sighup_reads_servers_and_keys_again_and_an_error_changes_nothing(
    routes: Routes, tmp_path: Path
) -> None:
    a, b = routes.server("a"), routes.server("b")
    servers, keys = tmp_path / "servers", tmp_path / "keys"
    servers.write_text(f"{a.url}\n")
    keys.write_text("")
    process = routes.start("--upstreams", "servers", "--keys-file", "keys")
    assert routes.answered_by() == {"a"}
    servers.write_text(f"{a.url}\nnonsense\n")
    process.send_signal(signal.SIGHUP)
    routes.until(lambda: "not reloaded, nothing changes: servers:2: 'nonsense'" in routes.log)
    assert routes.answered_by() == {"a"}
    servers.write_text(f"{b.url}\n")
    keys.write_text("alice:" + hashlib.sha256(b"secret").hexdigest() + "\n")
    process.send_signal(signal.SIGHUP)
    routes.until(lambda: "reloaded: 1 upstreams, 1 keys" in routes.log)
    assert routes.chat().status_code == 401
    assert routes.chat(headers={"Authorization": "Bearer secret"}).json()["by"] == "b"


def test_sigterm_finishes_what_is_in_flight(routes: Routes) -> None:
    a = routes.server("a")
    process = routes.start("--upstream", a.url)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(routes.chat(body={"stream": True}).text))
    asking.start()
    assert a.streaming.wait(PATIENCE_S)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    asking.join(PATIENCE_S)
    assert answers[0].endswith("data: [DONE]\n\n")
    assert answers[0].count("data: {") == 20
    assert not list(routes.dir.glob("gpuserve-route-*")), "its private folder is gone"


def test_a_port_that_is_taken_names_who_has_it(routes: Routes) -> None:
    a = routes.server("a")
    first = routes.start("--upstream", a.url)
    done = subprocess.run(
        routes.argv("--upstream", a.url),
        env=routes.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    assert f"held by PID {first.pid}" in done.stderr
