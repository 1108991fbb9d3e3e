"""The GPUs that the fleet has, and what happens on them: sampled once, however many look."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from gpuserved.api.types import GpuView
from gpuserved.core.placement import Gpu, GpuInfo
from gpuserved.core.profile import Profile
from gpuserved.fleet.state import FleetState
from gpuserved.host import gpulock, procfs
from gpuserved.host.gpulock import GpuLocks
from gpuserved.host.tasks import Tasks
from gpuserved.planning.inventory import gpu_of
from gpuserved.replica.controller import ReplicaController
from gpuserved.telemetry.attribution import views
from gpuserved.telemetry.provider import Combined, GpuProvider, GpuSample
from gpuserved.telemetry.sampler import Sampler
from gpuserved.telemetry.sim import Claim, SimProvider, claims_of, simulated_by

log = logging.getLogger(__name__)

SAMPLE_S = 1.0


class GpuInventory:
    """The host's GPUs and those that sim profiles add."""

    def __init__(self, provider: GpuProvider, state: FleetState) -> None:
        self._real = Sampler(provider)
        self._state = state
        self._tasks = Tasks(log)
        self._sim: SimProvider | None = None
        self._samples: tuple[GpuSample, ...] = ()
        self._views: tuple[GpuView, ...] = ()
        self._ours: dict[str, set[int]] = {}
        """GPU UUID -> processes of our replicas that the samples have shown there and still show."""

    @property
    def samples(self) -> Sequence[GpuSample]:
        """The last round."""
        return self._samples

    def locks(self, daemon: str) -> GpuLocks | None:
        """Host-wide leases of real GPUs. Those of a file exist on paper, so nothing on this host can collide over them;
        GPUSERVE_LOCK_DIR leases them all the same.
        """
        real = self._real.provider.name == "nvml" or "GPUSERVE_LOCK_DIR" in os.environ
        where = gpulock.folder(os.environ) if real else None
        return GpuLocks(where, daemon) if where is not None else None

    async def real(self) -> list[Gpu]:
        """The host's own GPUs, with what others than our replicas hold there."""
        infos = await self._real.inventory()
        samples = {each.uuid: each for each in await self._real.sample()} if infos else {}
        replicas = self._state.replicas
        trees = _trees(replicas) if infos else {}
        ours = {
            uuid
            for controller in replicas.values()
            if controller.process is not None
            for uuid in controller.assignment.gpu_uuids
        }
        return [gpu_of(info, samples.get(info.uuid), trees, shared=info.uuid in ours) for info in infos]

    def simulate(self, profiles: list[Profile]) -> None:
        """Make the simulated GPUs those that these profiles ask for."""
        self._sim = simulated_by(profiles)

    def begin(self, on_sample: Callable[[], None]) -> None:
        """Sample from now on."""
        self._tasks.start(self._run(on_sample), "GPU sampling")

    async def _run(self, on_sample: Callable[[], None]) -> None:
        while True:
            try:
                await self._sample()
                on_sample()
            except Exception:
                log.exception("GPUs could not be sampled")
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self) -> None:
        infos = await self._real.inventory()
        samples = await self._real.sample() if infos else []
        replicas = self._state.replicas
        trees = _trees(replicas) if infos else {}
        if self._sim is not None:
            self._sim.claim(_claims(replicas))
            both = Combined([_Known(infos, samples), self._sim])
            infos, samples = both.inventory(), both.sample()
            for name, controller in replicas.items():
                if controller.process is not None and controller.process.pid is not None:
                    trees.setdefault(name, set()).add(controller.process.pid)
        self._samples = tuple(samples)
        self._views = tuple(views(infos, samples, trees, describe=procfs.identity))
        self._remember()

    def _remember(self) -> None:
        """Which processes on each GPU are or were ours: one that ends stays ours for as long as its memory does."""
        told = {sample.uuid for sample in self._samples if sample.processes is not None}
        for gpu in (
            gpu for gpu in self._views if gpu.uuid in told
        ):  # a driver that says nothing has freed nothing
            mine = {owner.pid for owner in gpu.owners if owner.replica is not None}
            self._ours[gpu.uuid] = (self._ours.get(gpu.uuid, set()) & {o.pid for o in gpu.owners}) | mine

    async def left_over(self, uuids: Collection[str]) -> dict[str, list[int]]:
        """Which of these GPUs processes of earlier starts of ours still hold, and their PIDs."""
        if not any(self._ours.get(uuid) for uuid in uuids):
            return {}
        await self._sample()
        found: dict[str, list[int]] = {}
        for gpu in self._views:
            pids = [o.pid for o in gpu.owners if o.replica is None and o.pid in self._ours.get(gpu.uuid, ())]
            if pids and gpu.uuid in uuids:
                found[gpu.uuid] = pids
        return found

    def views(self) -> Sequence[GpuView]:
        """As of the last sample."""
        return self._views

    async def close(self) -> None:
        """Stop sampling."""
        await self._tasks.close()
        self._real.close()


class _Known:
    """What was just read, as a provider."""

    name = "known"
    reason: str | None = None

    def __init__(self, infos: list[GpuInfo], samples: list[GpuSample]) -> None:
        self._infos = infos
        self._samples = samples

    def inventory(self) -> list[GpuInfo]:
        return self._infos

    def sample(self) -> list[GpuSample]:
        return self._samples


def _trees(replicas: Mapping[str, ReplicaController]) -> dict[str, set[int]]:
    table = procfs.processes()
    roots = {
        name: controller.process.shim_pid
        for name, controller in replicas.items()
        if controller.process is not None
    }
    return {name: procfs.tree(pid, table) for name, pid in roots.items() if pid is not None}


def _claims(replicas: Mapping[str, ReplicaController]) -> list[Claim]:
    found: list[Claim] = []
    for controller in replicas.values():
        assignment, process = controller.assignment, controller.process
        if process is not None and process.pid is not None:
            found += claims_of(assignment.profile, process.pid, assignment.gpu_uuids)
    return found
