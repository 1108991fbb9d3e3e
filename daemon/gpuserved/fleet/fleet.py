"""The fleet: desired state, one owner per replica, and what the control API may ask of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import Conflict, NotFound
from gpuserved.api.gpus import GpusRequest, GpusResult
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.processes import FailedUpgrade
from gpuserved.api.roots import Roots
from gpuserved.api.routing import ApiKey, RoutingTable, Tls
from gpuserved.api.types import (
    ActionResult,
    ApplyRequest,
    ApplyResult,
    GpuView,
    ReplicasRequest,
    RouterView,
    ScaleRequest,
    Status,
)
from gpuserved.api.upgrade import UpgradeAccepted, UpgradeRequest
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.profile import Profile
from gpuserved.core.state import State
from gpuserved.engines.base import Engine
from gpuserved.engines.registry import Engines
from gpuserved.fleet import acting, fence, learning, planning, setaside, snapshot, views
from gpuserved.fleet import apply as applying
from gpuserved.fleet.bus import Bus, Subscription
from gpuserved.fleet.environments import Environments
from gpuserved.fleet.gpus import Gpus
from gpuserved.fleet.gpuwatch import GpuWatch
from gpuserved.fleet.inspection import Inspection
from gpuserved.fleet.quarantine import FILE, Quarantine
from gpuserved.fleet.rolling import Rolls
from gpuserved.fleet.saving import Saving
from gpuserved.fleet.webhook import Webhook
from gpuserved.host.tasks import Tasks
from gpuserved.planning.arrange import Wanted
from gpuserved.planning.inputs import InputReader
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.start_gate import StartGate
from gpuserved.routers.routers import Routers

log = logging.getLogger(__name__)

MEMORY_BACK_S = 60.0
"""The driver frees a killed process's memory within seconds; what is held for longer is held by something unkillable."""
_MAY_COME_BACK = frozenset(
    {State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING, State.STOPPING, State.BACKOFF}
)


class Fleet:
    """Implements `control.port.FleetPort` and `supervisor.surroundings.Services`."""

    def __init__(self, roots: Roots, router: Routers, gpus: Gpus, *, orphan_ttl_s: float | None) -> None:
        self.roots = roots
        self.gate = StartGate()
        self.router = router
        self.gpus = gpus
        self.gpu_locks = gpus.locks(str(roots.run))
        self.quarantine = Quarantine(roots.state / FILE)
        self._engines = Engines(roots.cache)
        self.inputs = InputReader(roots.state, roots.cache, self._engines)
        self.orphan_ttl_s = orphan_ttl_s
        self.hf_token: str | None = None
        self.hang_timeout_s: float | None = None
        self.memory_back_s = MEMORY_BACK_S
        self.keys: list[ApiKey] = []
        self.trusted_proxies: list[str] = []
        self.tls: Tls | None = None
        self.endpoint: str | None = None
        self.degraded: str | None = None
        self.wanted: dict[str, Wanted] = {}
        self.leaving: dict[str, Wanted] = {}
        """While everything is being stopped: what the next daemon is to want, also where this one is killed half-way."""
        self.owners: dict[str, ReplicaController] = {}
        self.let_go: dict[str, Wanted] = {}
        """Owners that are on their way out (`letting_go.py`)."""
        self.generation = 0
        self.table_generation = 0
        self.mutations = asyncio.Lock()
        self.bus = Bus(self.status, lambda: self.generation, time.time)
        self.inspection = Inspection(self)
        self.on_shutdown: Callable[[bool, bool], None] = lambda _drain, _forget: None
        self.rolls = Rolls(self)
        self.saving = Saving(self)
        self.gpuwatch = GpuWatch(self)
        self.environments = Environments(self)
        self.webhook = Webhook()
        self.on_reload: Callable[[], None] = lambda: None
        self.on_upgrade: Callable[[UpgradeRequest], Awaitable[UpgradeAccepted]] | None = None
        self.service = False
        """Under systemd."""
        self.failed_upgrade: FailedUpgrade | None = None
        self.began = time.monotonic()
        self._routes: list[object] = []
        self._departures = Tasks(log)

    # --- what an owner needs (Services) ---

    def engine(self, profile: Profile) -> Engine:
        """See `Services`."""
        return self._engines.get(profile)

    def last_of_model(self, replica: str) -> bool:
        """See `Services`."""
        model = self.owners[replica].assignment.profile.served_name if replica in self.owners else None
        others = (
            o
            for name, o in self.owners.items()
            if name != replica and o.assignment.profile.served_name == model
        )
        return not any(other.r.state in _MAY_COME_BACK for other in others)

    def in_flight(self, replica: str, generation: int) -> int | None:
        """See `Services`."""
        return self.router.in_flight(replica, generation)

    async def gpus_free(self, replica: str, gpu_uuids: tuple[str, ...]) -> None:
        """See `Services`."""
        await fence.gpus_free(self, replica, gpu_uuids)

    def gpu_views(self, gpu_uuids: tuple[str, ...]) -> list[GpuView]:
        """See `Services`."""
        return [gpu for gpu in self.gpu_list() if gpu.uuid in gpu_uuids]

    def crashed(self, card: CrashCard) -> None:
        """See `Services`."""
        self.bus.publish("notice", message=card.headline, severity="error", crash=card)
        self.webhook.post(card)

    def changed(self, replica: str, previous_state: str) -> None:
        """See `Services`."""
        self.publish_routes()
        owner = self.owners.get(replica)
        if owner is not None:
            self.inspection.note(owner, previous_state)
            learning.after_change(self, owner, previous_state)
            severity = views.SEVERITIES.get(owner.r.state, "info")
            view = snapshot.replica(self, owner)
            self.bus.publish("replica", replica=view, previous_state=previous_state, severity=severity)
            if owner.moved_away() and replica in self.let_go:
                del self.owners[replica], self.let_go[replica]
                self._departures.start(
                    owner.detach(), f"the end of {replica}"
                )  # which cannot wait for itself
                self.publish_routes()
        self.rolls.step()
        self.router.fast = any(o.r.state is State.DRAINING for o in self.owners.values())
        self.saving.soon()

    async def record_intent(self) -> None:
        """See `Services`."""
        self.saving.now()

    def save_quietly(self) -> None:
        """Save; where the disk refuses, say so in `status` and go on."""
        self.saving.quietly()

    def gpu_list(self) -> list[GpuView]:
        """The GPUs as of the last sample, with those that are set aside marked."""
        return self.quarantine.shown(self.gpus.views())

    def add_owner(self, assignment: Assignment, first: EventKind | None) -> ReplicaController:
        """A replica that did not exist; its numbering goes on after the logs of a namesake."""
        owner = ReplicaController(assignment, self)
        owner.create(start=first is not None)
        self.owners[assignment.replica] = owner
        owner.begin()
        return owner

    def publish_routes(self, *, force: bool = False) -> None:
        """Tell the routers, where something they look at has changed."""
        models = views.model_routes(self.owners.values(), self.engine)
        fresh: list[object] = [models, self.keys, self.trusted_proxies, self.tls]
        if fresh == self._routes and not force:
            return
        self._routes = fresh
        self.table_generation += 1
        self.router.push(
            RoutingTable(
                generation=self.table_generation, models=models, keys=self.keys, trusted_proxies=self.trusted_proxies,
                tls=self.tls,
            )
        )  # fmt: skip

    # --- what the control API asks (FleetPort) ---

    async def look(self) -> None:
        """See `FleetPort`."""
        await self.router.look()

    def status(self) -> Status:
        """See `FleetPort`."""
        return snapshot.status(self)

    def telemetry(self) -> None:
        """One round of figures to whoever reads events."""
        self.gpuwatch.look(self.gpus.samples)
        self.inspection.watch_gpus(self.gpu_list())
        if self.bus.readers:
            self.bus.publish("telemetry", status=self.status())

    def expect(self, generation: int | None) -> None:
        """Refuse a mutation decided on an older state.

        :raises Conflict: it is older.
        """
        if generation is not None and generation != self.generation:
            raise Conflict(
                f"the fleet has moved on: generation {self.generation}, and this was decided on {generation}",
                "look again with `gpuserve status`, then repeat",
            )

    async def apply(self, request: ApplyRequest) -> ApplyResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.expect(request.generation)
            return await applying.apply(self, request)

    async def plan(self, request: PlanRequest) -> Plan:
        """See `FleetPort`."""
        return await planning.plan(self, request)

    async def scale(self, request: ScaleRequest) -> ActionResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.expect(request.generation)
            return await applying.scale(self, request)

    async def reload(self) -> ApplyResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.on_reload()
            return await applying.apply(self, applying.from_sources(self))

    async def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.expect(request.generation)
            return await acting.act(self, verb, request)

    async def quarantine_gpus(self, request: GpusRequest) -> GpusResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.expect(request.generation)
            return await setaside.quarantine(self, request)

    async def release_gpus(self, request: GpusRequest) -> GpusResult:
        """See `FleetPort`."""
        async with self.mutations:
            self.expect(request.generation)
            return await setaside.release(self, request)

    def named(self, name: str) -> list[ReplicaController]:
        """One replica by id, or all of a profile.

        :raises NotFound: there is neither.
        """
        if name in self.owners:
            return [self.owners[name]]
        found = [o for o in self.owners.values() if o.assignment.profile.name == name]
        if not found:
            known = ", ".join(sorted(self.owners, key=views.order)) or "none"
            raise NotFound(f"no replica or profile is called {name!r}", f"replicas: {known}")
        return sorted(found, key=lambda o: views.order(o.id))

    async def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        """See `FleetPort`."""
        async with self.mutations:
            if self.on_upgrade is None:
                raise Conflict("this daemon cannot be replaced now", "try again in a moment")
            return await self.on_upgrade(request)

    async def replace_routers(self) -> RouterView:
        """See `FleetPort`."""
        await self.router.replace()
        return views.router_view(self.router)

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        """See `FleetPort`."""
        self.on_shutdown(drain, forget)

    def subscribe(self) -> Subscription:
        """See `FleetPort`."""
        return self.bus.subscribe()
