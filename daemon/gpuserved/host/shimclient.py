"""Talk to shims: one connection, its requests and events. Works on any asyncio loop, uvloop included."""

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

from gpuserved.core.cause import ExitInfo
from gpuserved.host.deadline import within
from gpuserved.host.shimfiles import (
    ExitRecord,
    Identity,
    exit_info,
    read_exit,
    read_identity,
)
from gpuserved.host.shimlaunch import ShimError, Started, launch, replica_spec, router_spec

__all__ = [
    "ExitRecord",
    "Hello",
    "Identity",
    "ShimConnection",
    "ShimError",
    "ShimEvent",
    "Started",
    "launch",
    "read_exit",
    "read_identity",
    "replica_spec",
    "router_spec",
]

MAX_LINE_BYTES = 64 * 1024
ANSWER_TIMEOUT_S = 5.0
_MOST_FDS = 4
_FD_BYTES = 4
_RETRY_S = 0.02


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
