"""From where replicas are to be, to what each of them is told: pure decisions, and the one place that carries them out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuserved.api.types import Change
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause
from gpuserved.core.events import Event, EventKind
from gpuserved.core.state import Goal, State
from gpuserved.fleet.state import FleetState
from gpuserved.planning.arrange import Wanted, lacks_gpu
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.snapshot import ReplicaSnapshot

log = logging.getLogger(__name__)

Present = Mapping[str, ReplicaSnapshot]
"""The replicas that exist, as they are now."""
_LEAVING = frozenset({Goal.STOP, Goal.RESTART, Goal.REPLACE})


@dataclass(frozen=True)
class Order:
    """What becomes of one replica. It is created where it does not exist."""

    replica: str
    assignment: Assignment | None = None
    """What its next start runs; None: what it would run anyway."""
    event: Event | None = None
    """What it is told; None: nothing."""
    placed: bool | None = None
    """False: it has no place any more, and leaves once it is down. True: it has one. None: that does not change."""
    why: str = ""


def to_reach(
    target: Mapping[str, Assignment], found: Sequence[Change], present: Present, removals: Collection[str],
    rolled: Callable[[Change], bool],
) -> list[Order]:  # fmt: skip
    """Every replica to where an apply, or a scale, wants it.

    :param found: what that does to each replica, by `planning.arrange.changes`.
    :param removals: replicas on their way out.
    :param rolled: True for what a rolling change carries out in its own time: those replicas only exist from now on.
    """
    return [_reach(change, target, present, removals, rolled=rolled(change)) for change in found]


def _reach(
    change: Change, target: Mapping[str, Assignment], present: Present, removals: Collection[str], *, rolled: bool
) -> Order:  # fmt: skip
    name = change.replica
    if change.action == "stop":
        return _stop(present[name], removals, change.why)
    order = Order(name, target[name], placed=True, why=change.why)
    if rolled:
        return order if name not in present else replace(order, assignment=None)
    if name not in present:
        return replace(order, event=Event(EventKind.START))
    return replace(order, event=Event(EventKind.RESTART if change.action == "replace" else EventKind.WANTED))


def _stop(replica: ReplicaSnapshot, removals: Collection[str], why: str) -> Order:
    """One that is on its way out already keeps its deadline."""
    told = replica.id in removals and replica.r.goal is Goal.STOP
    return Order(replica.id, event=None if told else Event(EventKind.STOP), placed=False, why=why)


def to_turn_back(
    former: Mapping[str, Assignment], present: Present, removals: Collection[str], *,
    added: Collection[str], stays: Collection[str], pending: Collection[str],
) -> list[Order]:  # fmt: skip
    """A rolling change goes back to what ran before.

    :param added: replicas that there were none of before.
    :param stays: replicas that had a place in what the change led to.
    :param pending: those that it replaces in their turn.
    """
    found = [
        _stop(present[name], removals, "there was none of it before") for name in added if name in present
    ]
    for name, assignment in former.items():
        if name not in present:
            found.append(Order(name, assignment, Event(EventKind.START), placed=True, why="it ran before"))
        elif name not in stays:
            found.append(Order(name, assignment, Event(EventKind.WANTED), placed=True, why="it ran before"))
        elif name not in pending:
            found.append(Order(name, assignment, why="its process need not change"))
    return found


def to_move_off(
    uuids: Collection[str], target: Mapping[str, Assignment], present: Present, *,
    blocked: Collection[str], kill: Cause | None, spare_last: bool,
) -> list[Order]:  # fmt: skip
    """Replicas leave GPUs that have just been set aside: for others where there are any, else they wait for the release.

    :param target: every replica's place with what is left; empty where there is none for a profile.
    :param blocked: all GPUs that are set aside.
    :param kill: why their processes are ended at once; None: they are drained.
    :param spare_last: the last ready replica of a model goes on where it is.
    """
    found = []
    for name, replica in present.items():
        if not {*replica.target.gpu_uuids, *replica.assignment.gpu_uuids} & set(uuids):
            continue
        if kill is None and spare_last and _last_ready(replica, present):
            found.append(Order(name, why="goes on there: no other replica of its model is ready"))
            continue
        new = target.get(name)
        if new is not None and not set(new.gpu_uuids) & set(blocked):
            why = f"moves to GPU {', '.join(map(str, new.gpu_indexes))}"
        else:
            new, why = None, "waits for the release"
        found.append(Order(name, new, _departure(replica, new, kill), why=why))
    return found


def _departure(replica: ReplicaSnapshot, new: Assignment | None, kill: Cause | None) -> Event | None:
    r = replica.r
    if r.state.lives and kill is not None:
        return Event(EventKind.GPU_FAULT, r.generation, kill)
    if r.state.lives and not (r.state is State.DRAINING and r.goal in _LEAVING):
        moves = (
            replica.next_assignment is not None if new is None else not same_process(new, replica.assignment)
        )
        # Else it waits for its turn, and will be refused it.
        return Event(EventKind.RESTART) if replica.process is not None or moves else None
    return Event(EventKind.START) if lacks_gpu(r) else None


def _last_ready(replica: ReplicaSnapshot, present: Present) -> bool:
    """True where nothing else could take its requests."""
    served = replica.assignment.profile.served_name
    return replica.r.state is State.READY and not any(
        other.id != replica.id
        and other.r.state is State.READY
        and other.assignment.profile.served_name == served
        for other in present.values()
    )


def to_come_back(
    target: Mapping[str, Assignment], present: Present, removals: Collection[str], *, blocked: Collection[str]
) -> list[Order]:
    """After a release: what waited for it starts, and replicas that there was no GPU for. What runs stays where it is.

    :param blocked: GPUs that are still set aside.
    """
    found = []
    for name, assignment in target.items():
        if set(assignment.gpu_uuids) & set(blocked):
            continue
        where = f"on GPU {', '.join(map(str, assignment.gpu_indexes))}"
        start = Order(name, assignment, Event(EventKind.START), why=f"is started {where}")
        if name not in present:
            found.append(replace(start, placed=True))
        elif name in removals:
            found.append(
                Order(name, assignment, Event(EventKind.WANTED), placed=True, why=f"goes on {where}")
            )
        elif lacks_gpu(present[name].r):
            found.append(start)
    return found


def to_end(present: Present, removals: Collection[str], *, drain: bool) -> list[Order]:
    """Every replica leaves.

    :param drain: False: nobody waits for what is in flight, not even at those that drain already.
    """
    if drain:
        return [_stop(replica, removals, "everything is stopped") for replica in present.values()]
    found = []
    for name, replica in present.items():
        profile = replica.assignment.profile
        at_once = replace(profile, limits=replace(profile.limits, drain_s=0.0))
        assignment = replace(replica.assignment, profile=at_once)
        found.append(
            Order(name, assignment, Event(EventKind.STOP), placed=False, why="everything is stopped")
        )
    return found


def same_process(one: Assignment, other: Assignment) -> bool:
    """True where a process of one is as good as a process of the other."""
    return one.gpu_uuids == other.gpu_uuids and one.profile.runs_like(other.profile)


class Executor:
    """Carries orders out. Nothing here waits: each controller reads what it is told in its own time."""

    def __init__(self, state: FleetState, controller: Callable[[Assignment], ReplicaController]) -> None:
        """:param controller: makes the controller of a replica."""
        self._state = state
        self._controller = controller

    def carry_out(self, orders: Iterable[Order], wanted: Mapping[str, Wanted]) -> None:
        """Tell every replica.

        :param wanted: the profiles while those that lose their place still had one.
        """
        for order in orders:
            controller = self._state.replicas.get(order.replica)
            if controller is None:
                self._create(order)
                continue
            if order.placed is False and order.replica not in self._state.removals:
                self._state.begin_removal(order.replica, wanted[controller.assignment.profile.name])
            elif order.placed:
                self._state.end_removal(order.replica)
            if order.assignment is not None:
                controller.assign(order.assignment)
            if order.event is not None:
                controller.post(order.event.kind, generation=order.event.generation, cause=order.event.cause)

    def _create(self, order: Order) -> None:
        assert order.assignment is not None, order
        controller = self._controller(order.assignment)
        controller.create(start=order.event is not None)
        self._state.add(controller)
        controller.begin()
