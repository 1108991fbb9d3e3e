"""A small fleet in memory behind the real server on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.client import ControlClient
from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import Conflict, NotFound, Refused
from gpuserved.api.inspect import EventsView, ProfilesView, ProfileView, ReplicaDetail
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.types import (
    ActionResult,
    ApplyRequest,
    ApplyResult,
    Change,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    ReplicaView,
    RouterView,
    ScaleRequest,
    Status,
    SupervisorView,
    UpgradeAccepted,
    UpgradeRequest,
)
from gpuserved.control.routes import Limits
from gpuserved.control.server import ControlServer
from gpuserved.fleet.events import Bus, Subscription

PATIENCE_S = 60.0


@dataclass
class MemoryInspection:
    """Implements `InspectionPort` over log files in a folder."""

    fleet: MemoryFleet

    def events(self) -> EventsView:
        return EventsView(events=self.fleet.bus.recent())

    def detail(self, replica: str) -> ReplicaDetail:
        if replica not in self.fleet.states:
            raise NotFound(f"there is no replica {replica}")
        return ReplicaDetail(replica=self.fleet.view(replica), command=["serve", replica])

    def profiles(self) -> ProfilesView:
        return ProfilesView(generation=self.fleet.generation, profiles=[ProfileView(name="demo", source="x")])

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        request = ApplyRequest(profiles={name: ""}, dry_run=dry_run, generation=generation)
        return await self.fleet.apply(request)

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        if replica not in self.fleet.states:
            raise NotFound(f"there is no replica {replica}")
        live = self.fleet.logs / ("0.log" if previous else f"{self.fleet.generation}.log")
        return [path for path in (live.with_name(live.name + ".1"), live) if path.exists()]

    def crash(self, replica: str, previous: bool) -> CrashCard:
        if replica not in self.fleet.states or previous:
            raise NotFound(f"no crash of {replica} is known")
        return CrashCard(
            replica=replica, profile="demo", model="demo", engine="sim", generation=1, at=0.0, cause="exited",
            message="ended", state="BACKOFF", log="1.log",
        )  # fmt: skip

    def all_logs(self, replica: str) -> list[Path]:
        return [*self.log_path(replica, previous=True), *self.log_path(replica, previous=False)]

    def daemon_log(self) -> list[Path]:
        return [self.fleet.logs / "daemon.log"]


@dataclass
class MemoryFleet:
    """Implements `FleetPort` with two replicas that obey at once."""

    logs: Path
    states: dict[str, str] = field(default_factory=lambda: {"demo-0": "READY", "demo-1": "READY"})
    generation: int = 1
    calls: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """Where set, `reload` waits for it."""
    bus: Bus = field(init=False)
    inspection: MemoryInspection = field(init=False)

    def __post_init__(self) -> None:
        self.bus = Bus(self.status, lambda: self.status().generation, time.time, queue_max=8)
        self.inspection = MemoryInspection(self)

    async def look(self) -> None:
        """Nothing here is older than a moment."""

    def status(self) -> Status:
        return Status(
            generation=self.generation,
            version="1",
            endpoint="http://127.0.0.1:1",
            supervisor=SupervisorView(pid=1, version="1", uptime_s=1.0),
            router=RouterView(),
            replicas=[self.view(name) for name in self.states],
        )

    def view(self, name: str) -> ReplicaView:
        return ReplicaView(id=name, profile="demo", model="demo", engine="sim", state=self.states[name])

    async def apply(self, request: ApplyRequest) -> ApplyResult:
        if "huge" in request.profiles:
            raise Refused("it does not fit", "use less", {"code": "does_not_fit"})
        self.calls.append(f"apply {sorted(request.profiles)} prune={request.prune}")
        return ApplyResult(
            generation=self.generation, changes=[Change(replica="demo-0", action="keep", why="")]
        )

    async def plan(self, request: PlanRequest) -> Plan:
        return Plan(fits=request.name == "demo")

    async def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        if request.generation not in {None, self.generation}:
            raise Conflict("it moved", "look again")
        for name in request.replicas:
            if name not in self.states:
                raise NotFound(f"there is no replica {name}", "gpuserve status lists them")
        for name in request.replicas:
            self.states[name] = {"stop": "STOPPED", "drain": "DRAINING"}.get(verb, "READY")
            self.bus.publish("replica", replica=self.view(name), previous_state="READY")
        self.calls.append(f"{verb} {request.replicas}")
        return ActionResult(
            generation=self.generation, replicas={n: self.states[n] for n in request.replicas}
        )

    async def scale(self, request: ScaleRequest) -> ActionResult:
        raise RuntimeError(f"a bug with {request.profile}")

    async def quarantine_gpus(self, request: GpusRequest) -> GpusResult:
        self.calls.append(f"quarantine {request.gpus} {request.reason}")
        return GpusResult(generation=self.generation, replicas={"demo-0": "waits for the release"})

    async def release_gpus(self, request: GpusRequest) -> GpusResult:
        raise Refused(f"GPU {request.gpus[0]} is LOST", "reset it")

    async def reload(self) -> ApplyResult:
        if self.gate is not None:
            self.calls.append("reload began")
            await self.gate.wait()
        self.calls.append("reload done")
        return ApplyResult(generation=self.generation)

    async def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        self.calls.append(f"upgrade {request.python} {request.pythonpath}")
        return UpgradeAccepted(version="2")

    async def replace_routers(self) -> RouterView:
        self.calls.append("replace routers")
        return RouterView(pids=[7])

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        self.calls.append(f"shutdown drain={drain} forget={forget}")

    def subscribe(self) -> Subscription:
        return self.bus.subscribe()


@dataclass
class Daemon:
    """The server, running in a thread of its own."""

    path: Path
    fleet: MemoryFleet
    loop: asyncio.AbstractEventLoop

    @property
    def client(self) -> ControlClient:
        return ControlClient(self.path)

    def do(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run in the server's loop."""

        async def run() -> Any:
            return call(*arguments, **named)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE_S)


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """With the usual limits; `parametrize("daemon", [Limits(...)], indirect=True)` for others."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with tempfile.TemporaryDirectory(prefix="gsc-") as folder:
        path = Path(folder) / "control.sock"

        async def start() -> tuple[MemoryFleet, ControlServer]:
            fleet = MemoryFleet(tmp_path)
            server = ControlServer(fleet, path, limits=getattr(request, "param", Limits()))
            await server.start()
            return fleet, server

        fleet, server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
        try:
            yield Daemon(path, fleet, loop)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_S)
            assert not path.exists()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE_S)
            loop.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    """Wait for a condition."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    return wait
