"""Before a start: the GPUs it gets must have been left by those that leave them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gpuserved.core.state import Goal
from gpuserved.replica.services import GpuSetAside

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

POLL_S = 0.25


def leaving(fleet: Fleet, replica: str, gpu_uuids: tuple[str, ...]) -> list[str]:
    """Other replicas whose process is on one of these GPUs and is not to stay there."""
    found = []
    for name, owner in fleet.owners.items():
        there = set(gpu_uuids) & set(owner.assignment.gpu_uuids)
        if name == replica or owner.process is None or not there:
            continue
        after = owner.next_assignment
        moves = after is not None and not there <= set(after.gpu_uuids)
        if moves or owner.r.goal is Goal.STOP:
            found.append(name)
    return found


def refuse_set_aside(fleet: Fleet, gpu_uuids: tuple[str, ...]) -> None:
    """Nothing is started on a GPU that is quarantined.

    :raises GpuSetAside: one of these is.
    """
    for record in fleet.quarantine.among(gpu_uuids):
        raise GpuSetAside(f"GPU {record.index} is quarantined: {record.explain()}")


async def gpus_free(fleet: Fleet, replica: str, gpu_uuids: tuple[str, ...]) -> None:
    """See `Services`."""
    owner = fleet.owners.get(replica)
    refuse_set_aside(fleet, gpu_uuids)
    while gone := leaving(fleet, replica, gpu_uuids):
        if owner is not None:
            owner.waits(f"waits for {', '.join(gone)} to leave its GPU")
        await asyncio.sleep(POLL_S)
    deadline = time.monotonic() + fleet.memory_back_s
    while held := await fleet.gpus.left_over(gpu_uuids, fleet.owners):
        refuse_set_aside(fleet, gpu_uuids)
        if time.monotonic() > deadline:
            for uuid, pids in held.items():
                who = ", ".join(map(str, pids))
                fleet.gpuwatch.hold(uuid, f"PID {who} of an earlier start still holds its memory", pids)
            refuse_set_aside(fleet, gpu_uuids)
        await asyncio.sleep(POLL_S)
    refuse_set_aside(fleet, gpu_uuids)
