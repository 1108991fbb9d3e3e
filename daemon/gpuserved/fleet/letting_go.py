"""Replicas that the desired state has no place for any more. They drain and stop, and leave the fleet once they are down; a
daemon that takes over in between goes on with that, to the same deadline (`take_up.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.state import Goal
from gpuserved.planning.arrange import Wanted
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


def let_go(
    fleet: Fleet, owner: ReplicaController, wanted: Mapping[str, Wanted], *, at_once: bool = False
) -> None:
    """Have it stop. One that is on its way out already keeps its deadline.

    :param wanted: what was wanted while it had a place.
    :param at_once: its limits have changed since: it is told again.
    """
    if owner.id not in fleet.let_go:
        fleet.let_go[owner.id] = wanted[owner.assignment.profile.name]
    elif owner.r.goal is Goal.STOP and not at_once:
        return
    owner.post(EventKind.STOP)


def take_back(fleet: Fleet, owner: ReplicaController, assignment: Assignment) -> None:
    """It has a place: it goes on, or is started anew where it has been told to end. One that never lost it is left alone."""
    fleet.let_go.pop(owner.id, None)
    owner.assign(assignment)
    owner.post(EventKind.WANTED)
