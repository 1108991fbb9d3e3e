"""Before a start: the GPUs it gets must have been left by those that leave them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gpuserved.api.errors import Refused
from gpuserved.core.state import Goal

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

POLL_S = 0.25
MEMORY_BACK_S = 60.0
"""The driver frees a killed process's memory within seconds; what is held for longer is held by something unkillable."""


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


async def gpus_free(fleet: Fleet, replica: str, gpu_uuids: tuple[str, ...]) -> None:
    """See `Surroundings`."""
    owner = fleet.owners.get(replica)
    while gone := leaving(fleet, replica, gpu_uuids):
        if owner is not None:
            owner.watch.phase = f"waits for {', '.join(gone)} to leave its GPU"
            owner.progress_at_start()
        await asyncio.sleep(POLL_S)
    deadline = time.monotonic() + MEMORY_BACK_S
    while held := await fleet.gpus.left_over(gpu_uuids, fleet.owners):
        if time.monotonic() > deadline:
            raise Refused(
                held[0], "nvidia-smi shows the process; a GPU reset or reboot frees one that cannot be killed"
            )
        await asyncio.sleep(POLL_S)
