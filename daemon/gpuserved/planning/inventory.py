"""GPUs as the planner takes them: what the driver says, what others hold there, what other daemons have leased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuserved.core.placement import Foreign, Gpu, GpuInfo, Lease
from gpuserved.host import procfs
from gpuserved.host.gpulock import GpuLocks
from gpuserved.telemetry.attribution import foreign_bytes
from gpuserved.telemetry.attribution import owners as owners_of
from gpuserved.telemetry.provider import OK, GpuSample


def gpu_of(
    info: GpuInfo, sample: GpuSample | None, trees: Mapping[str, set[int]], *, shared: bool = False
) -> Gpu:
    """One GPU as the planner takes it.

    :param shared: a replica of ours runs there; where the driver names none of its processes (a container), nobody can tell
        what others hold, and nothing is counted.
    """
    used: int | None = None
    foreign: tuple[Foreign, ...] = ()
    if sample is not None:
        named = owners_of(sample, trees, procfs.identity)
        told = not shared or any(each.replica is not None for each in named)
        used = foreign_bytes(sample, trees) if sample.processes is not None else sample.memory_used_bytes
        used = used if told else None
        foreign = tuple(
            Foreign(each.pid, each.user, each.memory_bytes) for each in named if each.replica is None
        )
    lost = f"GPU is {sample.state}" if sample is not None and sample.state != OK else None
    return Gpu.of(info, memory_used_bytes=used, foreign=foreign, blocked=lost)


def leases_of_others(locks: GpuLocks | None, inventory: Sequence[Gpu]) -> list[Lease]:
    """What other daemons of this host have leased."""
    if locks is None:
        return []
    return [
        Lease(gpu.uuid, f"{held.holder} (another gpuserve)", held.fraction)
        for gpu in inventory
        for held in locks.held_by_others(gpu.uuid)
    ]


def free_gpus(infos: Sequence[GpuInfo], samples: Sequence[GpuSample]) -> list[Gpu]:
    """GPUs on which nothing is ours: what is used there, others use."""
    by_uuid = {sample.uuid: sample for sample in samples}
    return [gpu_of(info, by_uuid.get(info.uuid), {}) for info in infos]
