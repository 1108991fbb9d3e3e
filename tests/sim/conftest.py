"""Real look-alike processes on real sockets; nothing of them is left after a test."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2] / "daemon")
DEADLINE_S = 60.0


def wait_for(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `check`, polled."""
    end = time.monotonic() + deadline_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s} s: {what}")
        time.sleep(0.02)


class Process:
    """One process of a replica, by /proc."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        self.argv = [part.decode() for part in raw.split(b"\0") if part]
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        self.state, self.ppid, self.session = fields[0], int(fields[1]), int(fields[3])

    @property
    def title(self) -> str:
        return self.argv[0] if self.argv else ""


class Replica:
    """One start of the look-alike."""

    def __init__(self, folder: Path, argv: list[str], env: dict[str, str]) -> None:
        self.socket = str(folder / "engine.sock")
        self.log = folder / "log"
        self.nonce = secrets.token_hex(6)
        whole = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": PACKAGE_ROOT, "GPUSERVE_NONCE": self.nonce, **env,
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpuserved.engines.sim", "serve", *argv],
                stdout=log, stderr=subprocess.STDOUT, env=whole, cwd="/",
            )  # fmt: skip
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=self.socket), base_url="http://replica", timeout=DEADLINE_S
        )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def health(self) -> int | None:
        """Its status; None where it is refused or cut."""
        # Not through httpx, which leaks the socket of a connection that is refused.
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.settimeout(20)
                asked.connect(self.socket)
                asked.sendall(b"GET /health HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n\r\n")
                with asked.makefile("rb") as answer:
                    words = answer.readline().split()
        except OSError:
            return None
        return int(words[1]) if len(words) > 1 else None

    def ready(self) -> Replica:
        def up() -> bool:
            assert self.process.poll() is None, self.text()
            return self.health() == 200

        wait_for("/health 200", up)
        return self

    def exit(self, deadline_s: float = DEADLINE_S) -> int:
        return self.process.wait(deadline_s)

    def tree(self) -> list[Process]:
        """Every live process of this start, wherever it has gone."""
        mark = f"GPUSERVE_NONCE={self.nonce}".encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    process = Process(int(entry))
                    if process.state != "Z":
                        found.append(process)
            except OSError:
                continue
        return found

    def titled(self, title: str) -> list[Process]:
        return [process for process in self.tree() if process.title == title]

    def engine(self) -> Process:
        return wait_for("EngineCore", lambda: self.titled("VLLM::EngineCore"))[0]  # type: ignore[no-any-return]

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " "))
        )

    def chat(self, text: str = "My order is late.", **more: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=body(text, **more))

    def stream(self, text: str = "My order is late.", **more: Any) -> Any:
        return self.http.stream("POST", "/v1/chat/completions", json=body(text, stream=True, **more))

    def clean(self) -> None:
        self.http.close()
        for _ in range(50):
            alive = self.tree()
            for process in alive:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not alive:
                break
            time.sleep(0.02)
        self.process.wait(60)


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}


def raw_post(path: str, content: dict[str, Any]) -> bytes:
    """A request as bytes."""
    raw = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def events(lines: Iterator[str]) -> list[Any]:
    """SSE data: objects, and the text `[DONE]`."""
    data = [line[6:] for line in lines if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@pytest.fixture(name="tools", scope="session")
def _tools() -> Any:
    class Tools:
        pass

    tools = Tools()
    tools.wait_for, tools.body, tools.events, tools.raw_post = wait_for, body, events, raw_post  # type: ignore[attr-defined]
    return tools


def _starter() -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []
    folders: list[str] = []

    def start(
        *argv: str, ready: bool = True, env: dict[str, str] | None = None, model: str = "sim/m"
    ) -> Replica:
        folder = tempfile.mkdtemp(prefix="sim-")
        folders.append(folder)
        uds = [] if "--port" in argv else ["--uds", f"{folder}/engine.sock"]
        replica = Replica(
            Path(folder), [model, *uds, "--served-model-name", "sim", "--step-ms", "4", *argv], env or {}
        )
        started.append(replica)
        return replica.ready() if ready else replica

    yield start
    for replica in started:
        replica.clean()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(name="start")
def _start() -> Iterator[Callable[..., Replica]]:
    """Start look-alikes: `start("--flag", ...)`."""
    yield from _starter()


@pytest.fixture(name="shared", scope="module")
def _shared() -> Iterator[Replica]:
    """One healthy look-alike for tests that leave it as it was."""
    for start in _starter():
        yield start("--max-model-len", "2048")
