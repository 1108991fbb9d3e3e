"""The daemon that `bench` measures the screen against: the real control server, with figures that are new every second.

python -m tests.tui.benchserver FOLDER GPUS LINES_PER_S
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from tests.tui.fleets import many

from gpuserved.api.inspect import EventsView, ProfilesView, ReplicaDetail
from gpuserved.api.plan import Plan
from gpuserved.api.types import ActionResult, ApplyResult, GpusResult, RouterView, Status, UpgradeAccepted
from gpuserved.control.server import ControlServer
from gpuserved.fleet.events import Bus, Subscription

LINE = "(EngineCore pid=4711) INFO 11-24 02:02:42 [loggers.py:271] Engine 000: Avg prompt throughput: {0:.1f} tokens/s, Avg generation throughput: 2811.0 tokens/s, Running: 64 reqs, Waiting: 14 reqs, GPU KV cache usage: 97.1%\n"


class BenchFleet:
    """Implements `FleetPort` and `InspectionPort` for a screen that only looks: every figure changes every second."""

    def __init__(self, gpus: int, log: Path) -> None:
        self._base = many(gpus)
        self._log = log
        self.bus = Bus(self.status, lambda: 4, time.time)

    @property
    def inspection(self) -> Any:
        return self

    async def look(self) -> None:
        """Nothing here is older than a moment."""

    def status(self) -> Status:
        replicas = [
            msgspec.structs.replace(
                r, running=random.randrange(64), waiting=random.randrange(9), in_flight=random.randrange(80),
                kv_cache_pct=random.uniform(0, 99),
            )
            for r in self._base.replicas
        ]  # fmt: skip
        gpus = [
            msgspec.structs.replace(
                g, utilization_pct=random.uniform(0, 100), power_w=random.uniform(300, 700)
            )
            for g in self._base.gpus
        ]
        return msgspec.structs.replace(self._base, replicas=replicas, gpus=gpus)

    def subscribe(self) -> Subscription:
        return self.bus.subscribe()

    def events(self) -> EventsView:
        return EventsView()

    def profiles(self) -> ProfilesView:
        return ProfilesView(generation=4)

    def detail(self, replica: str) -> ReplicaDetail:
        return ReplicaDetail(replica=next(r for r in self._base.replicas if r.id == replica))

    def all_logs(self, replica: str) -> list[Path]:
        return [self._log] if replica == self._base.replicas[0].id else []

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        return [] if previous else self.all_logs(replica)

    def daemon_log(self) -> list[Path]:
        return [self._log]

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        return ApplyResult(generation=4)

    async def apply(self, request: object) -> ApplyResult:
        return ApplyResult(generation=4)

    async def plan(self, request: object) -> Plan:
        return Plan(fits=True)

    async def act(self, verb: str, request: object) -> ActionResult:
        return ActionResult(generation=4)

    async def scale(self, request: object) -> ActionResult:
        return ActionResult(generation=4)

    async def quarantine_gpus(self, request: object) -> GpusResult:
        return GpusResult(generation=4)

    async def release_gpus(self, request: object) -> GpusResult:
        return GpusResult(generation=4)

    async def reload(self) -> ApplyResult:
        return ApplyResult(generation=4)

    async def upgrade(self, request: object) -> UpgradeAccepted:
        return UpgradeAccepted(version="0")

    async def replace_routers(self) -> RouterView:
        return RouterView()

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        return None


def write(log: Path, lines_per_s: int) -> None:
    """Append to the log for ever, ten times a second."""
    with log.open("a", encoding="utf-8") as file:
        due = time.monotonic()
        while True:
            due += 0.1
            file.write("".join(LINE.format(random.random()) for _ in range(lines_per_s // 10)))
            file.flush()
            time.sleep(max(0.0, due - time.monotonic()))


async def serve(folder: Path, gpus: int, lines_per_s: int) -> None:
    """Serve `folder/control.sock` until killed."""
    log = folder / "1.log"
    log.touch()
    threading.Thread(target=write, args=(log, lines_per_s), daemon=True).start()
    fleet = BenchFleet(gpus, log)
    await ControlServer(fleet, folder / "control.sock").start()
    while True:
        fleet.bus.publish("telemetry", status=fleet.status())
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
