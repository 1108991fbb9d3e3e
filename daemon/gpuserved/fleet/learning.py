"""After a start: what the engine reported of its memory is kept for the next plan."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpuserved.core.state import State
from gpuserved.host.logtail import segments
from gpuserved.replica import start_files

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet
    from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

_under_way: set[asyncio.Task[None]] = set()


def after_change(fleet: Fleet, owner: ReplicaController, previous_state: str) -> None:
    """Learn from a replica on GPUs that has just become ready."""
    assignment = owner.assignment
    ready = owner.r.state is State.READY and previous_state == State.STARTING.value
    if ready and fleet.engine(assignment.profile).reports_memory and assignment.gpu_uuids:
        task = asyncio.ensure_future(_learn(fleet, owner))
        _under_way.add(task)  # the loop keeps only weak references to tasks
        task.add_done_callback(_under_way.discard)


async def _learn(fleet: Fleet, owner: ReplicaController) -> None:
    assignment = owner.assignment
    logs = segments(start_files.log_path(fleet.roots, owner.id, owner.r.generation))
    gpus = [gpu for gpu in fleet.gpus.views() if gpu.uuid in assignment.gpu_uuids]
    try:
        found = await asyncio.to_thread(fleet.inputs.record, assignment, gpus, logs)
    except Exception:  # a plan is better for it; a replica serves without
        log.exception("%s: its memory figures could not be kept", owner.id)
        return
    if found is not None:
        log.info(
            "%s: the engine reports %.2f GiB of KV cache on each GPU",
            owner.id,
            found.kv_cache_bytes / 1024**3,
        )
