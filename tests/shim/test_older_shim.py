"""Shims live as long as their replicas, so a supervisor meets shims that are older than itself.

`recorded/0.1.0` is the shim of that release, verbatim. `recorded/v1.json` is protocol version 1: the keys and types of every answer,
event and file. Both the recorded shim and today's must speak exactly that. Whoever changes the protocol raises VERSION in
`shim/wire.py` and records `v2.json`; v1.json and the recorded shim stay, for supervisors must go on speaking with them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.shim.yard import IsAlive, WaitUntil, Yard, stopped

from gpuserved.api.roots import Roots
from gpuserved.core.cause import ExitInfo
from gpuserved.host import shimclient
from gpuserved.host import shimclient as sc
from gpuserved.replica.process import Ended, ReplicaProcess
from gpuserved.replica.start_files import Start, StartNote
from gpuserved.routers.link import RouterLink
from gpuserved.routers.place import RouterPlace
from gpuserved.shim.wire import VERSION

RECORDED = Path(__file__).with_name("recorded")
OLD = RECORDED / "0.1.0" / "gpuserved" / "shim" / "__main__.py"
PROTOCOL: dict[str, Any] = json.loads((RECORDED / f"v{VERSION}.json").read_text("utf-8"))
DEADLINE_S = 30.0
WAITS = "import signal; signal.pause()"
ACCEPTS = "import socket; s = socket.socket(fileno=3); s.setblocking(True)\nwhile True: s.accept()[0].close()"


@pytest.fixture(params=["0.1.0", "today"])
def shim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which shim `launch` starts."""
    which: str = request.param
    if which != "today":
        monkeypatch.setattr(shimclient, "PROGRAM", OLD)
    return which


@pytest.fixture
def old_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shimclient, "PROGRAM", OLD)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def shape(value: Any) -> Any:
    """Keys, and the types of what they hold; true, false and the names of events stand for themselves."""
    if isinstance(value, dict):
        return {key: each if key == "event" else shape(each) for key, each in value.items()}
    return value if isinstance(value, bool) or value is None else type(value).__name__


class Raw:
    """A connection that shows every byte."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(folder / "shim.sock"))
        self._file = self.socket.makefile("rb")

    def ask(self, request: dict[str, Any]) -> Any:
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        return self.line()

    def line(self) -> Any:
        return json.loads(self._file.readline())

    def ended(self) -> bool:
        return self._file.readline() == b""


def replica_spec(yard: Yard) -> dict[str, Any]:
    """The spec as 0.1.0 wrote it: exactly the recorded keys."""
    spec = yard.spec(WAITS)
    recorded: list[str] = PROTOCOL["spec"]["replica"]
    assert set(recorded) <= set(spec), "a key of the spec is gone"
    return {key: spec[key] for key in recorded}


def found(folder: Path, spec: dict[str, Any]) -> Start:
    return Start(folder, StartNote(spec["id"], "a", spec["generation"], spec["nonce"], "unix:/nowhere"))


def router_spec(yard: Yard, folder: Path, listener: socket.socket) -> dict[str, Any]:
    base = yard.spec(ACCEPTS)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec = sc.router_spec(
        name="router-0", nonce=base["nonce"], folder=folder, argv=tuple(base["argv"]), env=base["env"], cwd="/",
        log_path=folder / "router.log", log_max_bytes=65536, log_keep=1, listen_fd=listener.fileno(),
    )  # fmt: skip
    recorded: list[str] = PROTOCOL["spec"]["router"]
    assert set(recorded) <= set(spec), "a key of the spec is gone"
    return {key: spec[key] for key in recorded}


def speak(raw: Raw, conversation: list[dict[str, Any]]) -> None:
    for turn in conversation:
        assert shape(raw.ask(turn["request"])) == turn["answer"], turn["request"]
        for event in turn.get("events", []):
            assert shape(raw.line()) == event


async def test_a_replicas_shim_speaks_the_recorded_protocol(yard: Yard, shim: str) -> None:
    spec = replica_spec(yard)
    folder = Path(spec["dir"])
    await yard.launch(spec)
    raw = await asyncio.to_thread(Raw, folder)
    with raw.socket:
        assert shape(json.loads((folder / "replica.json").read_text())) == PROTOCOL["files"]["replica.json"]
        await asyncio.to_thread(speak, raw, PROTOCOL["replica"])
        assert await asyncio.to_thread(raw.ended), "after `exited` the shim hangs up"
    assert shape(json.loads((folder / "exit.json").read_text())) == PROTOCOL["files"]["exit.json"]
    assert json.loads((folder / "exit.json").read_text())["v"] == VERSION


async def test_a_routers_shim_speaks_the_recorded_protocol(
    yard: Yard, shim: str, listener: socket.socket
) -> None:
    folder = yard.top / "router"
    await yard.launch(router_spec(yard, folder, listener), pass_fds=(listener.fileno(),))
    raw = await asyncio.to_thread(Raw, folder)
    with raw.socket:
        await asyncio.to_thread(speak, raw, PROTOCOL["router"])
        assert await asyncio.to_thread(raw.ended)


@pytest.mark.usefixtures("old_shim")
async def test_a_new_supervisor_adopts_signals_stops_and_hears_the_end(
    yard: Yard, wait_until: WaitUntil
) -> None:
    spec = replica_spec(yard)
    folder = Path(spec["dir"])
    started = await yard.launch(spec)
    assert b"recorded/0.1.0" in Path(f"/proc/{started.shim_pid}/cmdline").read_bytes()
    dying: list[ExitInfo | None] = []
    ended: list[Ended] = []
    process = ReplicaProcess(found(folder, spec), dying.append, ended.append)
    assert await process.attach()
    assert (process.snapshot.pid, process.snapshot.shim_pid) == (started.pid, started.shim_pid)
    os.kill(started.pid, signal.SIGSTOP)  # so that SIGTERM cannot end it yet
    await stopped(started.pid)
    await process.terminate()
    assert not dying
    os.kill(started.pid, signal.SIGCONT)
    await wait_until(lambda: ended, "the end is told")
    assert [info.signal for info in dying if info] == [signal.SIGTERM]
    assert ended[0].info is not None
    assert (ended[0].info.signal, ended[0].shim_lost) == (signal.SIGTERM, False)
    await process.detach()


@pytest.mark.usefixtures("old_shim")
async def test_an_end_that_nobody_watched_is_found(
    yard: Yard, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    spec = replica_spec(yard)
    folder = Path(spec["dir"])
    started = await yard.launch(spec)
    os.kill(started.pid, signal.SIGKILL)
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim has ended")
    ended: list[Ended] = []
    process = ReplicaProcess(found(folder, spec), lambda _info: None, ended.append)
    assert not await process.attach()
    await wait_until(lambda: ended, "the end is found")
    assert ended[0].info is not None
    assert ended[0].info.signal == signal.SIGKILL
    await process.detach()


@pytest.mark.usefixtures("old_shim")
async def test_a_new_supervisor_takes_the_socket_of_an_old_routers_shim_and_ends_it(
    yard: Yard, listener: socket.socket, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    folder = yard.top / "router"
    started = await yard.launch(router_spec(yard, folder, listener), pass_fds=(listener.fileno(),))
    gone: list[RouterLink] = []
    link = RouterLink(_roots(yard.top), RouterPlace(yard.top, 0), gone.append)
    assert await link.adopt()
    seen = link.process
    assert (seen.pid, seen.shim_pid, seen.shim_version) == (started.pid, started.shim_pid, None)
    assert link.listener is not None
    assert link.listener.getsockname() == listener.getsockname()
    link.begin()
    await link.drain(60)
    await wait_until(lambda: gone == [link], "router and shim have ended")
    await link.detach()
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim ends")


def _roots(top: Path) -> Roots:
    return Roots(top, top, top, top, top)
