"""Whose memory it is: processes on a GPU matched to the process trees of replicas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from gpuserved.api.types import GpuOwner, GpuView
from gpuserved.core.placement import GpuInfo
from gpuserved.telemetry.provider import GpuSample

Describe = Callable[[int], tuple[str | None, str | None]]
"""From a pid to its process's name and user."""


def nobody(pid: int) -> tuple[str | None, str | None]:
    """Describes nothing."""
    del pid
    return None, None


def owners(
    sample: GpuSample, trees: Mapping[str, Collection[int]], describe: Describe = nobody
) -> list[GpuOwner]:
    """The processes of a sample, ours first; `replica` None: a foreign one.

    :param trees: replica id -> pids of its process tree.
    """
    replica_of = {pid: replica for replica, pids in trees.items() for pid in pids}
    found: list[GpuOwner] = []
    for process in sample.processes or ():
        command, user = describe(process.pid)
        found.append(
            GpuOwner(
                replica=replica_of.get(process.pid),
                pid=process.pid,
                memory_bytes=process.memory_bytes,
                command=command,
                user=user,
            )
        )
    return sorted(found, key=lambda owner: (owner.replica is None, owner.replica or "", owner.pid))


def foreign_bytes(sample: GpuSample, trees: Mapping[str, Collection[int]]) -> int | None:
    """Memory in use that is not ours, the driver's own included; None where the figures do not tell."""
    if sample.memory_used_bytes is None or sample.processes is None:
        return None
    ours = [owner.memory_bytes for owner in owners(sample, trees) if owner.replica is not None]
    if any(memory is None for memory in ours):
        return None
    return max(0, sample.memory_used_bytes - sum(memory for memory in ours if memory is not None))


def unattributed_bytes(sample: GpuSample) -> int | None:
    """Memory in use that no process accounts for; None where the figures do not tell."""
    if sample.memory_used_bytes is None or sample.processes is None:
        return None
    known = [process.memory_bytes for process in sample.processes]
    if any(memory is None for memory in known):
        return None
    return max(0, sample.memory_used_bytes - sum(memory for memory in known if memory is not None))


def views(
    infos: list[GpuInfo],
    samples: list[GpuSample],
    trees: Mapping[str, Collection[int]],
    describe: Describe = nobody,
) -> list[GpuView]:
    """What `status` shows of each GPU. A GPU without a sample keeps its row, with unknown figures."""
    sample_of = {sample.uuid: sample for sample in samples}
    return [_view(info, sample_of.get(info.uuid), trees, describe) for info in infos]


def _view(
    info: GpuInfo,
    sample: GpuSample | None,
    trees: Mapping[str, Collection[int]],
    describe: Describe,
) -> GpuView:
    sample = sample or GpuSample(info.index, info.uuid, memory_total_bytes=info.memory_total_bytes)
    return GpuView(
        index=info.index,
        uuid=info.uuid,
        name=info.name,
        memory_used_bytes=sample.memory_used_bytes,
        memory_total_bytes=sample.memory_total_bytes,
        utilization_pct=sample.utilization_pct,
        temperature_c=sample.temperature_c,
        power_w=sample.power_w,
        state=sample.state,
        owners=owners(sample, trees, describe),
        unattributed_bytes=unattributed_bytes(sample),
        nvlink=list(info.nvlink),
        numa_node=info.numa_node,
    )
