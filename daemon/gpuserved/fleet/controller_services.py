"""What a replica's controller needs of the rest of the daemon, for all controllers of one fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuserved.api.crash import CrashCard
from gpuserved.api.roots import Roots
from gpuserved.api.types import GpuView
from gpuserved.core.profile import Profile
from gpuserved.core.state import State
from gpuserved.engines.base import Engine
from gpuserved.engines.registry import Engines
from gpuserved.fleet.gpu_handover import GpuHandover
from gpuserved.fleet.observers import ReplicaChange, ReplicaObserver
from gpuserved.fleet.persistence import Saver
from gpuserved.fleet.settings import CurrentSettings
from gpuserved.fleet.state import FleetState
from gpuserved.host.gpulock import GpuLocks
from gpuserved.replica.start_gate import StartGate
from gpuserved.routers.routers import Routers


class ControllerServices:
    """Implements `replica.services.Services`."""

    def __init__(
        self,
        roots: Roots,
        state: FleetState,
        routers: Routers,
        engines: Engines,
        settings: CurrentSettings,
        saver: Saver,
        handover: GpuHandover,
        gpus: Callable[[], Sequence[GpuView]],
        observers: Sequence[ReplicaObserver],
        crashed: Callable[[CrashCard], None],
        *,
        gpu_locks: GpuLocks | None,
        orphan_ttl_s: float | None,
    ) -> None:
        """The parts that are used.

        :param gpus: as they are shown.
        :param observers: told of every change of a replica, in this order.
        :param crashed: told of every crash card.
        """
        self.roots = roots
        self.gate = StartGate()
        self.gpu_locks = gpu_locks
        self.orphan_ttl_s = orphan_ttl_s
        self._state = state
        self._routers = routers
        self._engines = engines
        self._settings = settings
        self._saver = saver
        self._handover = handover
        self._gpus = gpus
        self._observers = observers
        self._crashed = crashed

    @property
    def hf_token(self) -> str | None:
        """The hub's token, for engines that fetch their model."""
        return self._settings.value.hf_token

    def engine(self, profile: Profile) -> Engine:
        return self._engines.get(profile)

    def last_of_model(self, replica: str) -> bool:
        replicas = self._state.replicas
        model = replicas[replica].assignment.profile.served_name if replica in replicas else None
        return not any(
            (other.r.state.has_process or other.r.state is State.BACKOFF)
            for name, other in replicas.items()
            if name != replica and other.assignment.profile.served_name == model
        )

    def in_flight(self, replica: str, generation: int) -> int | None:
        return self._routers.in_flight(replica, generation)

    async def gpus_free(self, replica: str, gpu_uuids: tuple[str, ...]) -> None:
        await self._handover.wait(replica, gpu_uuids)

    def gpu_views(self, gpu_uuids: tuple[str, ...]) -> list[GpuView]:
        return [gpu for gpu in self._gpus() if gpu.uuid in gpu_uuids]

    def crashed(self, card: CrashCard) -> None:
        self._crashed(card)

    def changed(self, replica: str, previous_state: str) -> None:
        controller = self._state.replicas.get(replica)
        if controller is None:
            return  # it has left the fleet
        change = ReplicaChange(controller, previous_state)
        for observer in self._observers:
            observer.replica_changed(change)

    async def record_intent(self) -> None:
        await self._saver.now()
