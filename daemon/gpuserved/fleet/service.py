"""The fleet as a whole: what it is made of, what the control API asks of it, and what each replica's controller needs of the rest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpuserved.api.crash import CrashCard
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.roots import Roots
from gpuserved.api.types import (
    ActionResult,
    ApplyRequest,
    ApplyResult,
    GpusRequest,
    GpusResult,
    GpuView,
    ReplicasRequest,
    RouterView,
    ScaleRequest,
    Status,
    UpgradeAccepted,
    UpgradeRequest,
)
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.engines.registry import Engines
from gpuserved.fleet import views
from gpuserved.fleet.arranger import Arranger
from gpuserved.fleet.controller_services import ControllerServices
from gpuserved.fleet.environments import Environments
from gpuserved.fleet.events import Bus, EventJournal, Subscription, Transitions
from gpuserved.fleet.gpu_handover import GpuHandover
from gpuserved.fleet.gpu_health import GpuHealth
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.observers import (
    Afterwards,
    Departures,
    DrainPolling,
    MemoryMeasurements,
    ReplicaEvents,
    ReplicaObserver,
    Routes,
    TransitionKeeper,
)
from gpuserved.fleet.orders import Executor
from gpuserved.fleet.persistence import FILE_NAME, FleetRecord, Saver, fleet_record
from gpuserved.fleet.quarantine import FILE, Quarantine
from gpuserved.fleet.quarantine import SCHEMA as QUARANTINE_SCHEMA
from gpuserved.fleet.quarantine_requests import QuarantineRequests
from gpuserved.fleet.queries import About, CloserLooks, Overview
from gpuserved.fleet.reconcile import Reconciler
from gpuserved.fleet.recovery import Recovery
from gpuserved.fleet.rollout import Rollouts
from gpuserved.fleet.settings import CurrentSettings, Settings
from gpuserved.fleet.state import FleetState
from gpuserved.fleet.webhook import Webhook
from gpuserved.host import listen
from gpuserved.host.failpoint import reach
from gpuserved.host.gpulock import GpuLocks
from gpuserved.planning.inputs import InputReader
from gpuserved.replica.controller import ReplicaController
from gpuserved.routers.routers import Routers
from gpuserved.telemetry.provider import GpuProvider

log = logging.getLogger(__name__)

_POLL_S = 0.05


@dataclass(frozen=True)
class Daemon:
    """What the control API asks of the daemon around the fleet."""

    read_settings: Callable[[], Settings]
    """The settings as the files have them now. Raises `Invalid`."""
    shutdown: Callable[[bool, bool], None]
    """Begin to stop everything and the daemon: whether to drain, whether to forget what is wanted."""
    upgrade: Callable[[UpgradeRequest], Awaitable[UpgradeAccepted]]
    """Begin to hand over to another version. Raises `GpuserveError`."""


class Fleet:
    """The facade: implements `control.port.FleetPort` and `InspectionPort` and holds the parts together. Nobody below imports it."""

    def __init__(
        self,
        roots: Roots,
        routers: Routers,
        provider: GpuProvider,
        settings: CurrentSettings,
        daemon: Daemon,
        *,
        orphan_ttl_s: float | None = None,
        about: About | None = None,
    ) -> None:
        """A fleet that knows nothing yet: `recover` comes first.

        :param orphan_ttl_s: how long a replica outlives daemon and routers; None: for ever.
        """
        self._roots = roots
        self._routers = routers
        self._settings = settings
        self._daemon = daemon
        self._problem: str | None = None
        self._state = FleetState()
        self._inventory = GpuInventory(provider, self._state)
        self._quarantine = Quarantine(roots.state / FILE, self._keep_quarantine)
        self._quarantine_saver = Saver(
            roots.state / FILE, self._quarantine.content, version=QUARANTINE_SCHEMA, what="quarantine of GPUs"
        )  # fmt: skip
        self._engines = Engines(roots.cache)
        self._engines.load()
        self._journal = EventJournal(roots.log)
        self._transitions = Transitions(self._journal.past)
        self._bus = Bus(self.status, lambda: self._state.generation, time.time, journal=self._journal)
        self._saver = Saver(roots.state / FILE_NAME, self._record)
        self._webhook = Webhook(lambda: settings.value.webhook)
        self._environments = Environments(self._state, self._engines, self._bus)
        self._routes = Routes(self._state, routers, self._engines, settings)
        gpu_locks = self._inventory.locks(str(roots.run))
        inputs = InputReader(roots.state, roots.cache, self._engines)
        self._arranger = Arranger(
            self._state, settings, self._engines, inputs, self._inventory, self._quarantine, gpu_locks, roots.cache
        )  # fmt: skip
        executor = Executor(self._state, self._controller)
        self._rollouts = Rollouts(self._state, executor, self._quarantine, self._bus, self._saver.quietly)
        self._reconciler = self._make_reconciler(executor)
        self._health = GpuHealth(
            self._state, self._quarantine, settings, self._bus, self._reconciler, self.gpus
        )
        self._requests = QuarantineRequests(
            self._state, self._quarantine, self._inventory, self._health, self._reconciler, self.gpus
        )
        self._overview = Overview(
            self._state, routers, self._rollouts, self._inventory, self._quarantine, self._transitions,
            about or About(), self._endpoint, self._problem_now,
        )  # fmt: skip
        self._looks = CloserLooks(
            roots, self._state, self._engines, settings, self._overview, self._transitions, self._bus, self.apply
        )  # fmt: skip
        self._measurements = MemoryMeasurements(roots, self._engines, inputs, self._inventory.views)
        self._departures = Departures(self._state, self._routes)
        self._services = self._make_services(gpu_locks, orphan_ttl_s)

    def _make_reconciler(self, executor: Executor) -> Reconciler:
        return Reconciler(
            self._state, self._settings, self._arranger, self._rollouts, executor, self._quarantine, self._inventory,
            self._routes, self._bus, self._save,
        )  # fmt: skip

    def _make_services(self, gpu_locks: GpuLocks | None, orphan_ttl_s: float | None) -> ControllerServices:
        handover = GpuHandover(
            self._state, self._inventory, self._quarantine, self._settings, self._health.hold
        )
        return ControllerServices(
            self._roots, self._state, self._routers, self._engines, self._settings, self._saver, handover, self.gpus,
            self._observers(), self._crashed, gpu_locks=gpu_locks, orphan_ttl_s=orphan_ttl_s,
        )  # fmt: skip

    def _observers(self) -> tuple[ReplicaObserver, ...]:
        """Who is told of a change of a replica, in this order: routers first, the disk last."""
        return (
            self._routes,
            TransitionKeeper(self._transitions),
            self._measurements,
            ReplicaEvents(self._bus, self._overview.replica),
            self._departures,
            Afterwards(self._rollouts.wake),
            DrainPolling(self._state, self._routers),
            Afterwards(self._saver.soon),
        )

    def _controller(self, assignment: Assignment) -> ReplicaController:
        return ReplicaController(assignment, self._services)

    def _record(self) -> FleetRecord:
        return fleet_record(self._state, self._rollouts.records())

    def _keep_quarantine(self) -> None:
        self._quarantine_saver.begin()

    def _crashed(self, card: CrashCard) -> None:
        self._bus.publish("notice", message=card.headline, severity="error", crash=card)
        self._webhook.post(card)

    def _endpoint(self) -> str | None:
        listener = self._routers.listener
        return None if listener is None else listen.url_of(listener, tls=self._settings.value.tls is not None)

    def _problem_now(self) -> str | None:
        unsaved = self._saver.problem or self._quarantine_saver.problem
        return unsaved or self._quarantine.problem or self._problem

    async def _save(self) -> None:
        """Everything that has changed is on disk, or `status` says why it is not."""
        await asyncio.gather(self._saver.quietly(), self._quarantine_saver.flush())

    # --- its life, for the composition root

    @property
    def routes(self) -> Routes:
        """The routers' table."""
        return self._routes

    async def recover(self) -> None:
        """Desired profiles from disk, live replicas from their shims.

        :raises Invalid: a newer version wrote the state.
        """
        recovery = Recovery(
            self._roots, self._state, self._arranger, self._inventory, self._quarantine, self._rollouts, self._controller
        )  # fmt: skip
        self._problem = await recovery.run()
        self._rollouts.open()
        self._rollouts.wake()
        self._routes.publish(force=True)
        await self._saver.quietly()
        reach("adopt.saved")

    def begin(self) -> None:
        """Look at GPUs and environments from now on."""
        self._inventory.begin(self._sampled)
        self._environments.begin()

    def _sampled(self) -> None:
        self._health.look(self._inventory.samples)
        if self._bus.readers:
            self._bus.publish("telemetry", status=self.status())

    def say(self, what: str, severity: str = "info") -> None:
        """To the log and to whoever reads events, also later: that a daemon ended explains what happened after."""
        log.log(logging.ERROR if severity == "error" else logging.INFO, "%s", what)
        self._bus.publish("notice", message=what, severity=severity)

    def report(self, problem: str) -> None:
        """The daemon goes on with less than it was to have: `status` says so until what is wanted is applied again."""
        log.error("%s", problem)
        self._problem = problem

    async def stop_everything(self, *, drain: bool, forget: bool) -> None:
        """Stop all replicas; returns when the tree of each is gone.

        :param forget: what was wanted is forgotten; else the next daemon wants it.
        """
        self._reconciler.end(drain=drain, forget=forget)
        reach("down.begun")
        while self._state.replicas:  # each leaves the fleet once its tree is gone
            await asyncio.sleep(_POLL_S)
        self._state.commit()
        await self._saver.quietly()
        reach("down.emptied")

    def hurry(self) -> None:
        """Everything is being stopped, and nobody waits for what is in flight any more."""
        for controller in self._state.replicas.values():
            controller.post(EventKind.DRAIN_TIMEOUT)

    def hang_up(self) -> None:
        """Readers of events get what is queued for them, then the end."""
        self._bus.close()

    async def close(self) -> None:
        """Let go of everything: replicas and routers go on. What has changed is on disk after this."""
        for part in (self._rollouts, self._health, self._inventory, self._environments):
            await part.close()
        for controller in list(self._state.replicas.values()):
            await controller.detach()
        await self._departures.close()
        await self._measurements.close()
        await self._webhook.close()
        await self._saver.close()
        await self._quarantine_saver.close()
        await asyncio.to_thread(self._journal.close)

    # --- what the control API asks (FleetPort)

    @property
    def inspection(self) -> CloserLooks:
        """Closer looks."""
        return self._looks

    def gpus(self) -> list[GpuView]:
        """The GPUs as of the last sample, with those that are set aside marked."""
        return self._overview.gpus()

    async def look(self) -> None:
        await self._routers.look()

    def status(self) -> Status:
        return self._overview.status()

    async def apply(self, request: ApplyRequest) -> ApplyResult:
        return await self._apply(request)

    async def _apply(self, request: ApplyRequest, settings: Settings | None = None) -> ApplyResult:
        result = await self._reconciler.apply(request, settings)
        if not request.dry_run:
            self._problem = None
        return result

    async def plan(self, request: PlanRequest) -> Plan:
        return await self._arranger.plan(request)

    async def scale(self, request: ScaleRequest) -> ActionResult:
        return await self._reconciler.scale(request)

    async def reload(self) -> ApplyResult:
        """Read the daemon's file, the files it names, and the profiles again: all of it counts, or nothing does."""
        settings = await asyncio.to_thread(self._daemon.read_settings)
        request = self._reconciler.reading_sources()
        return await self._apply(request, settings)

    async def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        return await self._reconciler.act(verb, request)

    async def quarantine_gpus(self, request: GpusRequest) -> GpusResult:
        return await self._requests.quarantine(request)

    async def release_gpus(self, request: GpusRequest) -> GpusResult:
        return await self._requests.release(request)

    async def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        return await self._daemon.upgrade(request)

    async def replace_routers(self) -> RouterView:
        await self._routers.replace()
        return views.router_view(self._routers)

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        self._daemon.shutdown(drain, forget)

    def subscribe(self) -> Subscription:
        return self._bus.subscribe()
