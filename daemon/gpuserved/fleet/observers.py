"""What follows a change of a replica: each observer does one thing, and `service.py` lists them in the order they are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from gpuserved.api.inspect import Transition
from gpuserved.api.roots import Roots
from gpuserved.api.routing import RoutingTable
from gpuserved.api.types import GpuView, ReplicaView
from gpuserved.core.state import State
from gpuserved.engines.registry import Engines
from gpuserved.fleet import views
from gpuserved.fleet.events import Bus, Transitions
from gpuserved.fleet.settings import CurrentSettings
from gpuserved.fleet.state import FleetState
from gpuserved.host.logtail import segments
from gpuserved.host.tasks import Tasks
from gpuserved.planning.inputs import InputReader
from gpuserved.replica import start_files
from gpuserved.replica.controller import ReplicaController
from gpuserved.routers.routers import Routers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplicaChange:
    """Something of a replica that `status` shows is not what it was."""

    controller: ReplicaController
    previous_state: str
    """The present one where its state is the same."""


class ReplicaObserver(Protocol):
    """Wants to know of every change of a replica."""

    def replica_changed(self, change: ReplicaChange) -> None:
        """It has happened. Must not block."""


class Routes:
    """Keeps the routers' table the fleet's."""

    def __init__(
        self, state: FleetState, routers: Routers, engines: Engines, settings: CurrentSettings
    ) -> None:
        self._state = state
        self._routers = routers
        self._engines = engines
        self._settings = settings
        self._last = routers.table_on_disk() or RoutingTable(generation=0)
        """Counting goes on after the table of an earlier daemon."""

    def publish_first(self) -> None:
        """What routers find that are started before the fleet has been recovered: they go on with the table on disk, but not in the
        clear where TLS is wanted by now.
        """
        if not self._last.models:
            self.publish(force=True)
        elif self._last.tls != self._settings.value.tls:
            self._push(structs.replace(self._last, tls=self._settings.value.tls))

    def publish(self, *, force: bool = False) -> None:
        """Tell the routers, where something they look at has changed."""
        settings = self._settings.value
        fresh = RoutingTable(
            generation=self._last.generation,
            models=views.model_routes(self._state.snapshots().values(), self._engines.get),
            keys=list(settings.keys),
            trusted_proxies=list(settings.trusted_proxies),
            tls=settings.tls,
        )
        if force or fresh != self._last:
            self._push(fresh)

    def _push(self, table: RoutingTable) -> None:
        self._last = structs.replace(table, generation=self._last.generation + 1)
        self._routers.push(self._last)

    def replica_changed(self, change: ReplicaChange) -> None:
        del change
        self.publish()


class TransitionKeeper:
    """Remembers changes of state."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions

    def replica_changed(self, change: ReplicaChange) -> None:
        r = change.controller.r
        if r.state.value != change.previous_state:
            known = Transition(
                at=time.time(), generation=r.generation, previous_state=change.previous_state, state=r.state.value,
                reason=r.reason or None,
            )  # fmt: skip
            self._transitions.add(change.controller.id, known)


class MemoryMeasurements:
    """Keeps for the next plan what a replica on GPUs reports of its memory once it has become ready."""

    def __init__(
        self, roots: Roots, engines: Engines, inputs: InputReader, gpus: Callable[[], Sequence[GpuView]]
    ) -> None:
        """:param gpus: as of the last sample."""
        self._roots = roots
        self._engines = engines
        self._inputs = inputs
        self._gpus = gpus
        self._tasks = Tasks(log)

    def replica_changed(self, change: ReplicaChange) -> None:
        controller, assignment = change.controller, change.controller.assignment
        ready = controller.r.state is State.READY and change.previous_state == State.STARTING.value
        if ready and self._engines.get(assignment.profile).reports_memory and assignment.gpu_uuids:
            self._tasks.start(self._record(controller), f"keeping the memory figures of {controller.id}")

    async def _record(self, controller: ReplicaController) -> None:
        assignment = controller.assignment
        logs = segments(start_files.log_path(self._roots, controller.id, controller.r.generation))
        gpus = [gpu for gpu in self._gpus() if gpu.uuid in assignment.gpu_uuids]
        found = await asyncio.to_thread(self._inputs.record, assignment, gpus, logs)
        if found is not None:
            kv_cache_gib = found.kv_cache_bytes / 1024**3
            log.info("%s: the engine reports %.2f GiB of KV cache on each GPU", controller.id, kv_cache_gib)

    async def close(self) -> None:
        """Learn no more."""
        await self._tasks.close()


class ReplicaEvents:
    """Tells whoever reads events."""

    def __init__(self, bus: Bus, view: Callable[[str], ReplicaView]) -> None:
        """:param view: a replica as `status` shows it."""
        self._bus = bus
        self._view = view

    def replica_changed(self, change: ReplicaChange) -> None:
        severity = views.SEVERITIES.get(change.controller.r.state, "info")
        view = self._view(change.controller.id)
        self._bus.publish("replica", replica=view, previous_state=change.previous_state, severity=severity)


class Departures:
    """Lets replicas leave the fleet that have no place and are down."""

    def __init__(self, state: FleetState, routes: Routes) -> None:
        self._state = state
        self._routes = routes
        self._tasks = Tasks(log)

    def replica_changed(self, change: ReplicaChange) -> None:
        controller = change.controller
        if controller.id in self._state.removals and controller.snapshot.is_down:
            self._state.discard(controller.id)
            self._tasks.start(
                controller.detach(), f"letting {controller.id} go"
            )  # it cannot wait for its own end
            self._routes.publish()

    async def close(self) -> None:
        """Those that are leaving have left."""
        await self._tasks.close()


class DrainPolling:
    """Has the routers' figures ten times a second while something drains."""

    def __init__(self, state: FleetState, routers: Routers) -> None:
        self._state = state
        self._routers = routers

    def replica_changed(self, change: ReplicaChange) -> None:
        del change
        draining = any(c.r.state is State.DRAINING for c in self._state.replicas.values())
        self._routers.poll_fast(draining)


@dataclass(frozen=True)
class Afterwards:
    """One call after every change: the next step of rolling changes, the next save."""

    call: Callable[[], None]

    def replica_changed(self, change: ReplicaChange) -> None:
        del change
        self.call()
