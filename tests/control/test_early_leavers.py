"""Clients that leave early are normal: a TUI that is closed, a command that was interrupted. The log has no errors of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

from gpuserved.api.errors import Refused

Until = Callable[[Callable[[], object], str], None]

HEAD = b" HTTP/1.1\r\nHost: x\r\n"
HALF_A_BODY = HEAD + b"Content-Length: 100\r\n\r\n{"
REQUESTS = {
    "nothing": b"",
    "half a head": b"GET /v1/sta",
    "half a body": b"POST /v1/apply" + HALF_A_BODY,
    "half a question": b"POST /v1/plan" + HALF_A_BODY,
    "half a chunk": b"POST /v1/apply" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "a call": b"GET /v1/status" + HEAD + b"\r\n",
    "a change": b"POST /v1/replicas/drain" + HEAD + b'Content-Length: 23\r\n\r\n{"replicas":["demo-0"]}',
    "events": b"GET /v1/events" + HEAD + b"\r\n",
    "a log": b"GET /v1/daemon/logs?follow=1" + HEAD + b"\r\n",
    "logs": b"GET /v1/logs/follow?source=demo-0" + HEAD + b"\r\n",
    "many calls": (b"GET /v1/status" + HEAD + b"\r\n") * 50,
}


def leave(path: Any, sent: bytes, read: int) -> None:
    """Connect, send, read so much of the answer, and go; the kernel resets the connection for what was not read."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(60)
        raw.connect(str(path))
        raw.sendall(sent)
        while read > 0 and (piece := raw.recv(read)):
            read -= len(piece)


@pytest.mark.parametrize("read", [0, 20])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_client_that_leaves_is_no_error(
    daemon: Any, until: Until, caplog: pytest.LogCaptureFixture, what: str, read: int
) -> None:
    caplog.set_level(logging.DEBUG)
    (daemon.fleet.logs / "1.log").write_text("a line\n")
    answered = "half" not in what and what != "nothing"
    for _ in range(5):
        leave(daemon.path, REQUESTS[what], read if answered else 0)
    for number in range(20):
        daemon.do(daemon.fleet.bus.publish, "notice", message=f"number {number}")
    until(lambda: not daemon.fleet.bus.readers, "nobody reads events any more")
    until(lambda: daemon.do(lambda: len(asyncio.all_tasks(daemon.loop))) <= 3, "all have been let go")
    assert daemon.client.status()
    assert complaints(caplog) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("it does not fit"), []),
        (RuntimeError("a bug"), ["a control call failed, and its client had left"]),
    ],
)
def test_how_a_change_went_that_nobody_waited_for(
    daemon: Any, until: Until, caplog: pytest.LogCaptureFixture, error: Exception, said: list[str]
) -> None:
    """A refusal is the client's matter; a bug is in the log whoever was there."""
    caplog.set_level(logging.DEBUG)
    gate, calls = asyncio.Event(), []

    async def reload() -> None:
        calls.append("began")
        await gate.wait()
        raise error

    daemon.fleet.reload = reload
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.path))
        raw.sendall(b"POST /v1/reload" + HEAD + b"Content-Length: 0\r\n\r\n")
        until(lambda: calls, "the change began")
    before = len(caplog.records)
    daemon.do(gate.set)
    until(lambda: any("client had left" in r.getMessage() for r in caplog.records[before:]), "it is told")
    gc.collect()
    assert complaints(caplog) == said


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator who reads the log would look into."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING or r.exc_info]
