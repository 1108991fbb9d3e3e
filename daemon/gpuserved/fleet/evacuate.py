"""What becomes of the replicas of a GPU that is set aside, and of those that waited for one that is released."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from gpuserved.api.errors import GpuserveError
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause
from gpuserved.core.events import EventKind
from gpuserved.core.state import Goal, State
from gpuserved.fleet import apply as applying
from gpuserved.fleet.letting_go import take_back
from gpuserved.planning.arrange import lacks_gpu
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)

_RUNS = frozenset({State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING})
_LEAVING = frozenset({Goal.STOP, Goal.RESTART, Goal.REPLACE})


async def evacuate(
    fleet: Fleet, uuids: Collection[str], *, kill: Cause | None = None, spare_last: bool = False
) -> dict[str, str]:
    """Take replicas off GPUs that have just been set aside: to others where there are any, else they wait for the release.

    :param kill: why their processes are ended at once; None: they are drained.
    :param spare_last: the last ready replica of a model goes on where it is.
    :returns: replica -> what becomes of it, in words.
    """
    target = await _target(fleet)
    told: dict[str, str] = {}
    for name, owner in fleet.owners.items():
        there = set((owner.next_assignment or owner.assignment).gpu_uuids) | set(owner.assignment.gpu_uuids)
        if not there & set(uuids):
            continue
        if kill is None and spare_last and _last_ready(fleet, owner):
            told[name] = "goes on there: no other replica of its model is ready"
            continue
        new = target.get(name)
        if new is not None and not any(uuid in fleet.quarantine for uuid in new.gpu_uuids):
            owner.assign(new)
            told[name] = f"moves to GPU {', '.join(map(str, new.gpu_indexes))}"
        else:
            told[name] = "waits for the release"
        _leave(owner, kill)
    fleet.rolls.step()
    fleet.save_quietly()
    for name, what in told.items():
        fleet.bus.publish("notice", message=f"{name} {what}", severity="warning")
    return told


def _leave(owner: ReplicaController, kill: Cause | None) -> None:
    state, generation = owner.r.state, owner.r.generation
    if state in _RUNS and kill is not None:
        owner.post(EventKind.GPU_FAULT, generation=generation, cause=kill)
    elif state in _RUNS and not (state is State.DRAINING and owner.r.goal in _LEAVING):
        if owner.process is not None or owner.next_assignment is not None:
            owner.post(EventKind.RESTART)  # else it waits for its turn, and will be refused it
    elif lacks_gpu(owner.r):
        owner.post(EventKind.START)


def _last_ready(fleet: Fleet, owner: ReplicaController) -> bool:
    """True where nothing else could take its requests."""
    served = owner.assignment.profile.served_name
    return owner.r.state is State.READY and not any(
        other is not owner and other.r.state is State.READY and other.assignment.profile.served_name == served
        for other in fleet.owners.values()
    )


async def come_back(fleet: Fleet) -> dict[str, str]:
    """After a release: start what waited for it, and replicas that there was no GPU for. What runs stays where it is.

    :returns: replica -> what becomes of it, in words.
    """
    told: dict[str, str] = {}
    for name, assignment in (await _target(fleet)).items():
        if any(uuid in fleet.quarantine for uuid in assignment.gpu_uuids):
            continue
        owner = fleet.owners.get(name)
        where = f"on GPU {', '.join(map(str, assignment.gpu_indexes))}"
        if owner is None:
            fleet.add_owner(assignment, EventKind.START)
            told[name] = f"is started {where}"
        elif name in fleet.let_go:
            take_back(fleet, owner, assignment)
            told[name] = f"goes on {where}"
        elif lacks_gpu(owner.r):
            owner.assign(assignment)
            owner.post(EventKind.START)
            told[name] = f"is started {where}"
    fleet.save_quietly()
    for name, what in told.items():
        fleet.bus.publish("notice", message=f"{name} {what}")
    return told


async def _target(fleet: Fleet) -> dict[str, Assignment]:
    """Every replica's place with the GPUs that there are now; empty where there is none for a profile."""
    try:
        arranged = await applying.arranged_for(fleet, fleet.wanted)
    except GpuserveError as error:
        log.warning("replicas cannot be placed anew: %s", error.message)
        return {}
    return {each.replica: each for each in arranged.assignments}
