"""Everything that a supervisor does with shims: start one, talk to it, read what it leaves on disk.

Works on any asyncio loop, uvloop included. The protocol is in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.core.cause import ExitInfo
from gpuserved.host import failpoint, procfs
from gpuserved.host.deadline import within
from gpuserved.shim.wire import MAX_LINE_BYTES, VERSION

PROGRAM = Path(gpuserved.__file__).parent / "shim" / "__main__.py"
LOG_MAX_BYTES = 64 * 1024 * 1024
LOG_KEEP = 3
"""Segments beside the live file: at most 256 MiB for one start."""
IDENTITY = "replica.json"
EXIT = "exit.json"
ANSWER_TIMEOUT_S = 5.0
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", failpoint.VARIABLE)  # what loads an interpreter; no secrets
_MOST_FDS = 4
_FD_BYTES = 4
_RETRY_S = 0.02


# --- start one


class ShimError(GpuserveError):
    """A shim did not start its child, refused a request, or is gone. `errno` where a system call said so."""

    def __init__(self, message: str, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint)
        self.errno = errno


@dataclass(frozen=True)
class Started:
    """A shim and its child run."""

    shim_pid: int
    pid: int


def replica_spec(
    *,
    replica: str,
    generation: int,
    nonce: str,
    folder: Path,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    cwd: str,
    log_path: Path,
    log_max_bytes: int,
    log_keep: int,
    orphan_ttl_s: float | None,
    drain_s: float,
    term_grace_s: float,
    cgroup: str | None = None,
    keep_fds: tuple[int, ...] = (),
) -> dict[str, object]:
    """The spec of a replica's shim (docs/architecture.md); pass `keep_fds` to `launch` as well."""
    return {
        "v": VERSION, "role": "replica", "id": replica, "generation": generation, "nonce": nonce,
        "dir": str(folder), "argv": list(argv), "env": dict(env), "cwd": cwd,
        "log": {"path": str(log_path), "max_bytes": log_max_bytes, "keep": log_keep},
        "orphan_ttl_s": orphan_ttl_s, "drain_s": drain_s, "term_grace_s": term_grace_s, "cgroup": cgroup,
        "keep_fds": list(keep_fds),
    }  # fmt: skip


def router_spec(
    *,
    name: str,
    nonce: str,
    folder: Path,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    cwd: str,
    log_path: Path,
    log_max_bytes: int,
    log_keep: int,
    listen_fd: int,
) -> dict[str, object]:
    """The spec of the router's shim; pass `listen_fd` to `launch` as well."""
    return {
        "v": VERSION, "role": "router", "id": name, "nonce": nonce, "dir": str(folder),
        "argv": list(argv), "env": dict(env), "cwd": cwd, "listen_fd": listen_fd,
        "log": {"path": str(log_path), "max_bytes": log_max_bytes, "keep": log_keep},
    }  # fmt: skip


async def launch(
    spec: Mapping[str, object],
    *,
    python: str = sys.executable,
    pass_fds: tuple[int, ...] = (),
    timeout_s: float = 30.0,
) -> Started:
    """Start a shim and, through it, its child. The spec goes over stdin only.

    :raises ShimError: nothing runs and nothing is left behind; except when `timeout_s` passed without an answer (the disk of the
        program hangs): then a shim may yet come up in the spec's folder, and `read_identity` finds it.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-S", str(PROGRAM), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, pass_fds=pass_fds, start_new_session=True, cwd="/",
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )  # fmt: skip
    except OSError as error:
        raise ShimError(f"cannot run {python}: {error.strerror}", errno=error.errno) from None
    assert process.stdout is not None
    assert process.stderr is not None
    failpoint.reach("spawn.forked")
    try:
        line = await within(_exchange(process, json.dumps(spec).encode()), timeout_s)
        if not line:
            said = (await within(process.stderr.read(4096), timeout_s)).decode(errors="replace")
            raise ShimError(f"the shim ended without an answer: {said.strip() or 'it said nothing'}")
    except asyncio.TimeoutError:
        raise ShimError(
            f"the shim gave no answer within {timeout_s:g} s", "look for a hanging disk: dmesg, df"
        ) from None
    finally:
        _leave(process)
    return _started(line)


async def _exchange(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        failpoint.reach("spawn.told")
    except (BrokenPipeError, ConnectionResetError):
        pass  # it refused early; the answer says why
    line = await process.stdout.readline()
    await process.wait()
    return line


def _leave(process: asyncio.subprocess.Process) -> None:
    """End the launcher's own child and close its pipes; the shim proper is not its process any more and goes on."""
    # asyncio offers no public way to close the pipes of a process whose descendants still hold the other ends.
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _started(line: bytes) -> Started:
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return Started(int(answer["shim_pid"]), int(answer["pid"]))
        raise ShimError(str(answer["error"]), errno=answer["errno"])
    except (ValueError, KeyError, TypeError):
        raise ShimError(f"the shim's answer makes no sense: {line[:200]!r}") from None


# --- talk to it


@dataclass(frozen=True)
class Hello:
    """Who a shim is and how its child does. `generation` is None for the router role; `started_at` is Unix seconds."""

    role: str
    id: str
    generation: int | None
    nonce: str
    shim_pid: int
    pid: int
    pid_start_ticks: int
    started_at: float
    running: bool
    exit: ExitInfo | None
    restarts: int
    log_dropped_bytes: int


@dataclass(frozen=True)
class ShimEvent:
    """`dying` and `exited` carry `exit`, `restarted` (router role) carries `pid`."""

    kind: str
    exit: ExitInfo | None = None
    pid: int | None = None


def _hello(raw: Mapping[str, Any]) -> Hello:
    try:
        return Hello(
            str(raw["role"]), str(raw["id"]), raw["generation"], str(raw["nonce"]), int(raw["shim_pid"]),
            int(raw["pid"]), int(raw["pid_start_ticks"]), float(raw["started_at"]), bool(raw["running"]),
            None if raw["exit"] is None else exit_info(raw["exit"]), int(raw["restarts"]),
            int(raw["log_dropped_bytes"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ShimError(f"the shim's hello makes no sense: {error!r}") from None


async def _dial(peer: socket.socket, path: str, timeout_s: float) -> None:
    """On a Unix socket connect(2) is done, refused, or, while the backlog is full, to be tried again."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            peer.connect(path)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise ShimError(
                    f"the shim at {path} takes no connection", "is it stopped (state T in ps)?"
                ) from None
            await asyncio.sleep(_RETRY_S)
        except OSError as error:
            why = error.strerror or str(error)
            raise ShimError(f"no shim answers at {path}: {why}", errno=error.errno) from None
        else:
            return


class ShimConnection:
    """One connection. Requests are answered in order; events come between.

    `closed` is done when the shim is gone or `close` was called; by then every event was delivered.
    """

    def __init__(self, peer: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = peer
        self._pending = b""
        self._fds: list[int] = []
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._on_event: Callable[[ShimEvent], None] | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(peer.fileno(), self._readable)

    @classmethod
    async def connect(cls, path: Path | str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> ShimConnection:
        """Connect to a shim's socket.

        :raises ShimError: no shim listens there, or it accepts nothing for `timeout_s`.
        """
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await _dial(peer, str(path), timeout_s)
        except BaseException:
            peer.close()
            raise
        return cls(peer)

    async def hello(self, who: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Hello:
        """Say who we are (`supervisor`, `router`, `cli`): the first two keep the replica while this connection lives."""
        return _hello(await self._ask({"op": "hello", "who": who}, timeout_s))

    async def watch(
        self, on_event: Callable[[ShimEvent], None], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """Call `on_event` from the loop for each event from now on; a tree that is dying already is told at once."""
        self._on_event = on_event
        await self._ask({"op": "watch"}, timeout_s)

    async def signal(self, number: int, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Signal the API process alone.

        :raises ShimError: it has ended.
        """
        await self._ask({"op": "signal", "signal": int(number)}, timeout_s)

    async def kill(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """SIGKILL to the whole tree, repeated by the shim until it is gone."""
        await self._ask({"op": "kill"}, timeout_s)

    async def stop(self, grace_s: float, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """SIGTERM, after `grace_s` SIGKILL to the tree."""
        await self._ask({"op": "stop", "grace_s": grace_s}, timeout_s)

    async def listen_fd(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> socket.socket:
        """The listening socket that a router's shim keeps; the caller owns this copy."""
        answer = await self._ask({"op": "listen_fd"}, timeout_s)
        if "fd" not in answer:
            raise ShimError("the shim sent no socket")
        return socket.socket(fileno=answer["fd"])

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        self._end("the connection was closed here")

    async def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self.closed.done():
            raise ShimError("the shim is gone")
        self._send(json.dumps(request, separators=(",", ":")).encode() + b"\n")
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers.append(
            answer
        )  # stays in its place when nobody waits any more: a late answer finds it there
        try:
            got = await within(answer, timeout_s)
        except asyncio.TimeoutError:
            raise ShimError(f"the shim gave no answer within {timeout_s:g} s") from None
        if got.get("ok") is not True:
            raise ShimError(str(got.get("error", "refused")))
        return got

    def _send(self, line: bytes) -> None:
        try:
            sent = self._socket.send(line)
        except OSError as error:
            # Not the end yet: its last events may still wait here to be read.
            raise ShimError(f"the shim does not listen: {error.strerror}", errno=error.errno) from None
        if sent < len(line):  # half a request cannot be taken back
            self._end("the shim does not read")
            raise ShimError("the shim does not read")

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                MAX_LINE_BYTES, socket.CMSG_SPACE(_MOST_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(f"the shim is gone: {error.strerror}")
            return
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += [
                    int.from_bytes(raw[at : at + _FD_BYTES], sys.byteorder)
                    for at in range(0, len(raw), _FD_BYTES)
                ]
        if not data:
            self._end("the shim is gone")
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > MAX_LINE_BYTES:
            self._end("the shim broke its protocol")
            return
        for line in lines:
            if not self.closed.done():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "event" in message:
                event = ShimEvent(
                    str(message["event"]),
                    exit_info(message["exit"]) if "exit" in message else None,
                    message.get("pid"),
                )
                if self._on_event is not None:
                    # Not called here: its exception is its own, and `closed` still comes after it.
                    self._loop.call_soon(self._on_event, event)
                return
        except (ValueError, TypeError):
            self._end("the shim broke its protocol")
            return
        if self._answers:
            if self._fds:
                message["fd"] = self._fds.pop(0)
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(message)
            elif "fd" in message:
                os.close(message["fd"])

    def _end(self, why: str) -> None:
        if self.closed.done():
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(ShimError(why))
        self._answers.clear()
        self.closed.set_result(None)


# --- what it leaves on disk


@dataclass(frozen=True)
class Identity:
    """`replica.json`: who runs in a run folder. Ticks are those of /proc/PID/stat, times Unix seconds."""

    id: str
    generation: int
    nonce: str
    shim_pid: int
    shim_start_ticks: int
    pid: int
    pid_start_ticks: int
    started_at: float
    boot_id: str

    def shim_lives(self) -> bool:
        """True while this very shim runs: same boot, same pid, same start; a reused pid does not count."""
        return self.boot_id == procfs.boot_id() and procfs.is_same(self.shim_pid, self.shim_start_ticks)

    def process_lives(self) -> bool:
        """The same for the engine's API process."""
        return self.boot_id == procfs.boot_id() and procfs.is_same(self.pid, self.pid_start_ticks)


@dataclass(frozen=True)
class ExitRecord:
    """`exit.json`: how a replica ended. `cause` is `exited`, `orphaned` or `killed`."""

    info: ExitInfo
    cause: str


def exit_info(raw: Any) -> ExitInfo:
    """The wire's `{code, signal, at}`.

    :raises ValueError: it is something else.
    """
    try:
        code, number = raw["code"], raw["signal"]
        return ExitInfo(
            None if code is None else int(code), None if number is None else int(number), float(raw["at"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an exit record: {error!r}") from None


def read_identity(folder: Path) -> Identity | None:
    """None where the file is missing or unreadable: there is no start to adopt."""
    raw = _read(folder / IDENTITY)
    try:
        return Identity(
            str(raw["id"]), int(raw["generation"]), str(raw["nonce"]), int(raw["shim_pid"]),
            int(raw["shim_start_ticks"]), int(raw["pid"]), int(raw["pid_start_ticks"]),
            float(raw["started_at"]), str(raw["boot_id"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def read_exit(folder: Path) -> ExitRecord | None:
    """None while the tree lives, and where its shim was killed before it could write."""
    raw = _read(folder / EXIT)
    try:
        return ExitRecord(exit_info(raw), str(raw["cause"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> Any:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return json.loads(os.read(fd, MAX_LINE_BYTES))
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return None
