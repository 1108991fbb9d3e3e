"""What a new daemon makes of a replica: from what was saved of it, and the start that was found or not, to where it goes on.

Decided twice it must be decided alike: a daemon may end after it has saved what is decided here and before the replica's controller
has read the event. What is left in the saved replica must then lead to the same event once more.
"""

from __future__ import annotations

from dataclasses import replace

from gpuserved.core.cause import CauseKind
from gpuserved.core.events import Event, EventKind
from gpuserved.core.state import Goal, Replica, State

_WAITS_FOR_OPERATOR = frozenset(
    {CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.DOES_NOT_FIT, CauseKind.GPU_QUARANTINED}
)


def continues(saved: Replica | None, generation: int) -> bool:
    """True where a start that was found is the replica's latest. Else it is a stray: overtaken by a later one, or one whose end is
    in the state already, so that only its folder is left.
    """
    if saved is None or generation > saved.generation:
        return True
    return generation == saved.generation and saved.state.has_process


def adopted(saved: Replica | None, generation: int) -> Replica:
    """Where a replica stands whose start was found: what was READY is taken to be READY, so that it never leaves rotation; what was
    on its way out goes on with that.
    """
    if saved is None:
        return Replica(State.STARTING, Goal.SERVE, generation)
    r = replace(saved, generation=generation)
    same = generation == saved.generation
    if same and r.state in {State.READY, State.UNHEALTHY}:
        return replace(r, state=State.READY, goal=Goal.SERVE)
    if same and r.state in {State.DRAINING, State.STOPPING}:
        return r
    # A start on trial still owes its canary.
    goal = Goal.REPLACE if r.goal is Goal.REPLACE else Goal.SERVE
    return replace(r, state=State.STARTING, goal=goal)


def resumed(saved: Replica | None, latest: int) -> tuple[Replica, Event | None]:
    """Where a replica stands of which nothing runs, and what it is to be told; None: nothing.

    :param latest: generation of the latest start that has left a trace; counting goes on after it, for logs exist under their numbers.
    """
    if saved is None:
        return Replica(goal=Goal.SERVE, generation=latest), Event(EventKind.START)
    r = replace(saved, generation=max(saved.generation, latest))
    if r.goal is Goal.REPLACE:
        return replace(r, state=State.BACKOFF), Event(EventKind.REPLACE)
    if r.state is State.STOPPED and r.goal is Goal.SERVE:
        return r, Event(EventKind.START)  # the order was saved, and not read
    if r.state is State.STOPPED or (r.goal is Goal.STOP and r.state is not State.FAILED):
        return replace(r, state=State.STOPPED, goal=Goal.STOP), None
    if r.state is State.FAILED and r.cause is not None and r.cause.kind in _WAITS_FOR_OPERATOR:
        return r, None
    lost = r.state is not State.STARTING
    kind = EventKind.BACKOFF_ELAPSED if lost else EventKind.TAKE_UP
    return replace(r, state=State.BACKOFF, goal=Goal.SERVE), Event(kind, r.generation)
