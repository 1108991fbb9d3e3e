"""A whole gpuserve in a folder of its own, driven through the commands an operator types."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from gpuserved.api.roots import from_environment
from gpuserved.host import procfs

REPOSITORY = Path(__file__).resolve().parents[2]
GPUSERVE = (sys.executable, "-m", "gpuserved.cli.main")
GPUSERVED = (sys.executable, "-m", "gpuserved.app.main")
T = TypeVar("T")
Json = dict[str, Any]


def until(probe: Callable[[], T | None], what: str, timeout_s: float, every_s: float = 0.05) -> T:
    """The first answer of `probe` that is neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


def free_port() -> int:
    """A port nobody listens on, below the range that outgoing connections draw from, and of no other process of the same test run."""
    which = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for _ in range(200):
        port = random.randrange(15000 + which * 2000, 15000 + (which + 1) * 2000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port found")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("gpuserved", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


class Box:
    """One GPUSERVE_ROOT, its port, and everything that was ever seen running in it."""

    def __init__(self, root: Path | None = None) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="gse-"))
        self.root = root if root is not None else self.top / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.profiles = self.top / "profiles"
        self.profiles.mkdir()
        self.port = free_port()
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
        self.env = kept | {
            "HOME": str(self.top),
            "GPUSERVE_ROOT": str(self.root),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("daemon", "tui")),
        }
        self.roots = from_environment(self.env, uid=os.getuid())
        self._seen: dict[int, psutil.Process] = {}
        self._shared_memory: set[Path] = set()

    @property
    def endpoint(self) -> str:
        """The URL, without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    # --- commands

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """`gpuserve ARGUMENTS`, running."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        return subprocess.Popen([*GPUSERVE, *arguments], env=self.env, text=True, cwd=self.top, **given)

    def run(self, *arguments: str, timeout_s: float = 60, command: tuple[str, ...] = GPUSERVE) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """`gpuserve ARGUMENTS`, whatever it exits with."""
        return subprocess.run(
            [*command, *arguments], env=self.env, text=True, cwd=self.top, timeout=timeout_s,
            capture_output=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def ok(self, *arguments: str, timeout_s: float = 60) -> str:
        """stdout of `gpuserve ARGUMENTS`, which must succeed."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"{arguments}: rc {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, name: str, text: str) -> str:
        """Write a profile; its path."""
        path = self.profiles / f"{name}.toml"
        path.write_text(text, "utf-8")
        return str(path)

    def up(self, profiles: Mapping[str, str], wait_s: float = 60) -> None:
        """`gpuserve up` with these profiles, ready when it returns."""
        paths = [self.write(name, text) for name, text in profiles.items()]
        self.ok(
            "up", *paths, "--listen", f"127.0.0.1:{self.port}", "--wait", str(wait_s), timeout_s=wait_s + 30
        )
        self.remember()

    def status(self) -> Json:
        """`gpuserve status --json`."""
        answer: Json = json.loads(self.ok("status", "--json"))
        return answer

    # --- faster eyes, for what is measured in milliseconds

    def look(self) -> Json:
        """The same snapshot, straight from the control socket."""
        connection = _UnixConnection(self.roots.control_socket)
        try:
            connection.request("GET", "/v1/status")
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            answer: Json = json.loads(body)
            return answer
        finally:
            connection.close()

    def router_stats(self) -> Json | None:
        """Router 0's own figures; None while it does not answer."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(30)
            try:
                link.connect(str(self.roots.run / "router" / "ctl.sock"))
                link.sendall(b'{"op": "stats"}\n')
                line = link.makefile("rb").readline()
            except OSError:
                return None
        if not line:
            return None
        stats: Json = json.loads(line)["stats"]
        return stats

    def rotation(self, replica: str) -> str | None:
        """The router's own word on a replica; None where it does not know it."""
        stats = self.router_stats() or {"replicas": []}
        return next((str(row["rotation"]) for row in stats["replicas"] if row["id"] == replica), None)

    def replica(self, replica: str) -> Json:
        """One row of the snapshot."""
        rows: dict[str, Json] = {row["id"]: row for row in self.look()["replicas"]}
        return rows[replica]

    def wait_state(self, replica: str, state: str, timeout_s: float = 60, **more: Any) -> Json:
        """Wait until a replica is in `state` and every field of `more` has its value."""
        last: Json = {}

        def reached() -> Json | None:
            nonlocal last
            last = self.replica(replica)
            same = last["state"] == state and all(last[key] == value for key, value in more.items())
            return last if same else None

        try:
            return until(reached, f"{replica} {state} {more or ''}", timeout_s)
        except AssertionError as late:
            raise AssertionError(f"{late}; last seen: {last}") from None
        finally:
            self.remember()

    def wait_restarted(self, before: Json, timeout_s: float) -> Json:
        """Wait until the replica of the row `before` is READY as a later process."""

        def back() -> Json | None:
            row = self.replica(before["id"])
            return row if row["state"] == "READY" and row["generation"] > before["generation"] else None

        row = until(back, f"{before['id']} READY again", timeout_s)
        self.remember()
        return row

    # --- processes

    def tree(self, shim_pid: int) -> list[psutil.Process]:
        """A shim and everything below it."""
        try:
            shim = psutil.Process(shim_pid)
            return [shim, *shim.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def engine_core(self, row: Json) -> psutil.Process:
        """The engine process of a replica, as every `ps` shows it."""
        found = [p for p in self.tree(row["shim_pid"]) if "VLLM::EngineCore" in " ".join(_cmdline(p))]
        assert found, f"no VLLM::EngineCore below shim {row['shim_pid']}"
        return found[0]

    def remember(self) -> None:
        """Note what runs now and which shared memory it maps, so that nothing can be left behind unseen."""
        needle = str(self.root)
        for process in psutil.process_iter():
            if process.pid == os.getpid() or process.pid in self._seen:
                continue
            if needle in " ".join(_cmdline(process)) or needle in _environment(process):
                for one in (process, *_children(process)):
                    self._seen[one.pid] = one
        for process in self._seen.values():
            self._shared_memory |= _mapped_shared_memory(process.pid)

    def alive(self) -> list[str]:
        """What still runs of everything that was ever seen, in words."""
        self.remember()
        mine = [p for p in self._seen.values() if p.is_running() and not _is_child_of_ours(p)]
        return [f"{p.pid} {' '.join(_cmdline(p))[:120] or '(zombie)'}" for p in mine]

    def left_in_shared_memory(self) -> list[str]:
        """Names in /dev/shm that our processes mapped and that are still there."""
        return sorted(str(path) for path in self._shared_memory if path.exists())

    def down(self) -> None:
        """`gpuserve down`, then nothing of ours may be left."""
        self.remember()
        self.ok("down", "--yes", timeout_s=120)
        until(lambda: not self.alive(), "everything gone after `down`", 60)
        assert self.left_in_shared_memory() == []

    def close(self) -> None:
        """Teardown: `down`, kill what survived, remove the folders; whatever was left is the test's failure."""
        self.remember()
        done = self.run("down", "--yes", timeout_s=120)
        trouble = [] if done.returncode in {0, 3} else [f"down: rc {done.returncode} {done.stderr}"]
        try:
            until(lambda: not self.alive(), "everything gone after `down`", 60)
        except AssertionError:
            trouble += [f"still alive: {line}" for line in self.alive()]
        trouble += [f"left: {name}" for name in self.left_in_shared_memory()]
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for name in self._shared_memory:
            name.unlink(missing_ok=True)
        if trouble:
            trouble.append(tail(self.roots.log / "daemon.log"))
        shutil.rmtree(self.top, ignore_errors=True)
        shutil.rmtree(self.roots.run, ignore_errors=True)
        assert not trouble, "\n".join(trouble)


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Send a signal; the moment it was sent, or, of SIGKILL, the moment the process was dead of it: where every processor is busy
    that is seconds later, and before it nobody can know.
    """
    os.kill(pid, number)
    if number == signal.SIGKILL:
        until(lambda: _dead(pid), f"PID {pid} is dead", 30, every_s=0.002)
    return time.monotonic()


def _dead(pid: int) -> bool:
    """All its threads are: the last one to go closes its sockets."""
    found = procfs.process(pid)
    if found is not None and found.state not in {"Z", "X"}:
        return False
    try:
        return len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return True


def tail(path: Path, lines: int = 40) -> str:
    """The end of a log, for a failing test's message."""
    if not path.exists():
        return f"(no {path.name})"
    return "\n".join(path.read_text("utf-8", errors="replace").splitlines()[-lines:])


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _environment(process: psutil.Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/environ").read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _is_child_of_ours(process: psutil.Process) -> bool:
    """A command this test itself still runs or has not yet reaped."""
    try:
        return process.ppid() == os.getpid()
    except psutil.Error:
        return False


def _mapped_shared_memory(pid: int) -> set[Path]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text("utf-8", errors="replace")
    except OSError:
        return set()
    return {Path(name) for name in re.findall(r"/dev/shm/\S+(?!.*\(deleted\))", maps)}
