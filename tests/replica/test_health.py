"""Probes of a real socket, without a process behind it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from gpuserved.core.events import Event, EventKind
from gpuserved.core.profile import EngineName, HealthPolicy, Profile
from gpuserved.core.state import Goal, State
from gpuserved.engines.registry import Engines
from gpuserved.replica.health import Health, OomKills, Probed, Report, Situation

POLICY = HealthPolicy(interval_s=0.02, timeout_s=0.8, failure_threshold=3)


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


async def test_a_silent_replica_is_asked_everything_at_once(top: Path) -> None:
    """Asked one after the other, /health and /metrics would cost two timeouts a round: with the defaults 33 s until a stopped
    API process leaves rotation, instead of 18.
    """
    silent = SilentServer()
    path = top / "engine.sock"
    server = await asyncio.start_unix_server(silent.serve, str(path))
    profile = Profile("quiet", "sim/tiny", "quiet", engine=EngineName.SIM, health=POLICY)
    probed = Probed("quiet-0", 1, f"unix:{path}", Engines(top).get(profile), profile, top / "1.log")
    ready = Situation(State.READY, Goal.SERVE, POLICY, in_flight=0, pid=None, shim_pid=None)
    heard: list[Report] = []
    down = asyncio.Event()

    def tell(report: Report) -> None:
        heard.append(report)
        down.set()

    health = Health(probed, lambda: ready, tell, OomKills())
    health.begin()
    await asyncio.wait_for(down.wait(), 30)
    await health.close()
    server.close()
    assert [(type(each), getattr(each, "kind", None)) for each in heard] == [(Event, EventKind.PROBE_DOWN)]
    assert silent.asked.count("/health") == POLICY.failure_threshold
    assert silent.open_at_most == 2, "the second round asks for health and figures at the same time"
