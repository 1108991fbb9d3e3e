"""Probes of a real socket, without an owner's process behind it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from gpuserved.api.roots import from_environment
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.profile import EngineName, HealthPolicy, Profile
from gpuserved.core.state import Goal, State
from gpuserved.engines.registry import Engines
from gpuserved.replica.health import Watch

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

HEALTH = HealthPolicy(interval_s=0.02, timeout_s=0.8, failure_threshold=3)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gs-watch-") as made:  # short: socket paths must fit
        yield Path(made)


@dataclass
class SilentServer:
    """Takes every request and answers none, as an API process does that is stopped."""

    asked: list[str] = field(default_factory=list)
    open_now: int = 0
    open_at_most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readline()).decode().split()[1])
        self.open_now += 1
        self.open_at_most = max(self.open_at_most, self.open_now)
        await reader.read()
        self.open_now -= 1
        writer.close()


@dataclass
class Ready:
    """As much of an owner of a READY replica as its probes look at."""

    address: str
    folder: Path
    posted: list[EventKind] = field(default_factory=list)
    down: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        profile = Profile("quiet", "sim/tiny", "quiet", engine=EngineName.SIM, health=HEALTH)
        engine = Engines(self.folder).get(profile)
        self.id, self.process = "quiet-0", None
        self.r = SimpleNamespace(state=State.READY, goal=Goal.SERVE, generation=1)
        self.assignment = Assignment(self.id, profile)
        self.around = SimpleNamespace(
            engine=lambda _profile: engine,
            in_flight=lambda _replica, _generation: 0,
            roots=from_environment({"GPUSERVE_ROOT": str(self.folder)}, uid=1000),
        )

    def post(self, kind: EventKind, **_more: object) -> None:
        self.posted.append(kind)
        self.down.set()


async def test_a_silent_replica_is_asked_everything_at_once(folder: Path) -> None:
    """Asked one after the other, /health and /metrics would cost two timeouts a round: with the defaults 33 s until a stopped
    API process leaves rotation, instead of 18.
    """
    silent = SilentServer()
    path = folder / "engine.sock"
    server = await asyncio.start_unix_server(silent.serve, str(path))
    owner = Ready(f"unix:{path}", folder)
    watch = Watch(cast("ReplicaController", owner))
    watch.begin()
    await asyncio.wait_for(owner.down.wait(), 30)
    watch.end()
    await watch.closed()
    server.close()
    assert owner.posted == [EventKind.PROBE_DOWN]
    assert silent.asked.count("/health") == HEALTH.failure_threshold
    assert silent.open_at_most == 2, "the second round asks for health and figures at the same time"
