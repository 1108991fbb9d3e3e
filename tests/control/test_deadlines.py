"""Every call ends: with its answer, or with what it waits for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import TimedOut
from gpuserved.api.plan import PlanRequest
from gpuserved.api.transport import CHANGE_TIMEOUT_S, READ_TIMEOUT_S
from gpuserved.api.types import ReplicasRequest
from gpuserved.control.handlers import Handlers
from gpuserved.control.routes import Limits

SHORT = Limits(read_s=0.5, change_s=0.5)


async def never(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("daemon", [SHORT], indirect=True)
def test_a_question_that_cannot_be_answered_says_what_is_under_way(daemon: Any, until: Any) -> None:
    daemon.fleet.look = never
    with pytest.raises(TimedOut, match=r"status: no answer within 0\.5 s; under way: nothing else"):
        daemon.client.status()
    daemon.do(lambda: setattr(daemon.fleet, "gate", asyncio.Event()))
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.path))
        raw.sendall(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: daemon.fleet.calls == ["reload began"], "the change begins")
        with pytest.raises(TimedOut, match=r"under way: reload \(\d+ s\)") as told:
            daemon.client.status()
        assert "gpuserve logs --daemon" in (told.value.hint or "")
        daemon.do(daemon.fleet.gate.set)


@pytest.mark.parametrize("daemon", [SHORT], indirect=True)
def test_a_change_that_takes_long_goes_on_and_says_so(daemon: Any, until: Any) -> None:
    daemon.do(lambda: setattr(daemon.fleet, "gate", asyncio.Event()))
    with pytest.raises(
        TimedOut, match=r"reload: not done within 0\.5 s, it goes on; under way beside it: nothing else"
    ):
        daemon.client.reload()
    daemon.fleet.act = never
    with pytest.raises(TimedOut, match=r"replicas/stop: .*; under way beside it: reload \(\d+ s\)"):
        daemon.client.act("stop", ReplicasRequest(replicas=["demo-0"]))
    daemon.do(daemon.fleet.gate.set)
    until(lambda: daemon.fleet.calls == ["reload began", "reload done"], "it is done all the same")


@pytest.mark.parametrize("daemon", [SHORT], indirect=True)
def test_a_stream_has_no_deadline_but_for_its_head(daemon: Any) -> None:
    events = daemon.client.events()
    assert next(events).kind == "snapshot"
    with pytest.raises(TimedOut):
        list(daemon.client.events(timeout_s=2 * SHORT.read_s))
    daemon.do(daemon.fleet.bus.publish, "notice", message="late")
    assert next(events).message == "late"
    events.close()


def test_every_call_has_a_deadline_and_its_client_waits_longer() -> None:
    fleet: Any = None
    table = Handlers(fleet, lambda _: True).routes(Limits())
    assert {route.limit_s for route in table} == {Limits().read_s, Limits().change_s}
    assert Limits().read_s < READ_TIMEOUT_S
    assert Limits().change_s < CHANGE_TIMEOUT_S
    assert all(route.method == "POST" for route in table if route.changes)


CALLS: dict[str, Callable[[ControlClient], object]] = {
    "/version": lambda client: client.version(),
    "/status": lambda client: client.status(),
    "/events": lambda client: next(client.events()),
    "/events/recent": lambda client: client.recent_events(),
    "/profiles": lambda client: client.profiles(),
    "/profiles/{profile}/diff": lambda client: client.profile_diff("p"),
    "/plan": lambda client: client.plan(PlanRequest(name="p", text="")),
    "/replicas/{replica}": lambda client: client.detail("r"),
    "/replicas/{replica}/crash": lambda client: client.crash("r"),
    "/replicas/{replica}/logs": lambda client: list(client.logs("r")),
    "/daemon/logs": lambda client: list(client.logs(None)),
    "/logs/page": lambda client: client.log_page(""),
    "/logs/follow": lambda client: next(client.follow_logs([""])),
    "/reload": lambda client: client.reload(),
    "/shutdown": lambda client: client.shutdown(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_client_waits_longer_than_the_daemon_takes(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet: Any = None
    (route,) = (one for one in Handlers(fleet, lambda _: True).routes(Limits()) if one.path == call)
    patience: list[float] = []

    def opened(_path: Path, timeout_s: float) -> Any:
        patience.append(timeout_s)
        raise TimedOut("enough is known")

    monkeypatch.setattr("gpuserved.api.transport.UnixConnection", opened)
    with pytest.raises(TimedOut):
        CALLS[call](ControlClient(Path("/nowhere")))
    assert patience[0] > route.limit_s


def ask(path: Path, method: str, call: str) -> tuple[bytes, bytes]:
    """Head (without what tells the two methods apart) and body."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(60)
        raw.connect(str(path))
        raw.sendall(f"{method} /v1/{call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
            if method == "GET" and b"\r\n\r\n" in answer:
                break  # a stream has no end
    head, _, body = answer.partition(b"\r\n\r\n")
    skipped = (b"Date", b"Transfer-Encoding", b"Content-Length")
    return b"\n".join(line for line in head.split(b"\r\n") if not line.startswith(skipped)), body


@pytest.mark.parametrize(
    "call",
    [
        "version", "status", "events", "events/recent", "profiles", "profiles/demo/diff", "replicas/demo-0", "replicas/nope",
        "replicas/demo-0/crash", "replicas/demo-0/logs", "replicas/demo-0/logs?follow=1", "replicas/demo-0/logs?n=x",
        "daemon/logs", "logs/page", "logs/follow", "nothing",
    ],
)  # fmt: skip
def test_head_is_get_without_a_body(daemon: Any, until: Any, call: str) -> None:
    for name in ("1.log", "daemon.log"):
        (daemon.fleet.logs / name).write_text("a line\n")
    subscribed: list[object] = []
    subscribe = daemon.fleet.subscribe

    def counted() -> Any:
        subscribed.append(None)
        return subscribe()

    daemon.fleet.subscribe = counted
    head, body = ask(daemon.path, "HEAD", call)
    assert not body
    assert not subscribed
    assert head == ask(daemon.path, "GET", call)[0]
    until(lambda: daemon.do(lambda: len(asyncio.all_tasks(daemon.loop))) <= 3, "all have been let go")
    assert daemon.fleet.calls in ([], ["apply ['demo'] prune=False"] * 2)


def test_head_may_be_asked_by_whoever_may_look(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuserved.control.server.may_operate", lambda *_, **__: False)
    assert ask(daemon.path, "HEAD", "status")[0].startswith(b"HTTP/1.1 200")
