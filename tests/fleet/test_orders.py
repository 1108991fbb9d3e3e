"""From where replicas are to be, to what each is told. No process, no clock: values in, orders out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.load import Growth, Scrape
from gpuserved.core.profile import Profile
from gpuserved.core.state import Goal, Replica, State
from gpuserved.fleet.orders import (
    Order,
    same_process,
    to_come_back,
    to_end,
    to_move_off,
    to_reach,
    to_turn_back,
)
from gpuserved.planning.arrange import changes
from gpuserved.replica.snapshot import ReplicaSnapshot

NAMES = ("a-0", "a-1", "a-2", "b-0")
GPUS = ("G0", "G1", "G2")
PROCESS: Any = object()
QUARANTINED = Cause(CauseKind.GPU_QUARANTINED, "GPU 0 is quarantined")


def assignment(name: str, gpu: str = "G0", model: str = "org/m") -> Assignment:
    profile = name.partition("-")[0]
    return Assignment(name, Profile(profile, model, profile), (GPUS.index(gpu),), (gpu,))


def replica(
    name: str, state: State = State.READY, goal: Goal = Goal.SERVE, *, gpu: str = "G0",
    after: Assignment | None = None, cause: Cause | None = None,
) -> ReplicaSnapshot:  # fmt: skip
    runs = state in {State.READY, State.UNHEALTHY, State.DRAINING, State.STOPPING}
    return ReplicaSnapshot(
        id=name, r=Replica(state, goal, 3, cause=cause), assignment=assignment(name, gpu), next_assignment=after,
        process=PROCESS if runs else None, address=None, admit=False, figures=Scrape(), load=Growth(),
        phase=None, installed=None, outdated=None, drains_until=None,
    )  # fmt: skip


assignments = st.builds(
    assignment, st.just("a-0"), st.sampled_from(GPUS), st.sampled_from(("org/m", "org/n"))
)
targets = st.fixed_dictionaries(
    {}, optional={name: st.builds(assignment, st.just(name), st.sampled_from(GPUS), st.sampled_from(("org/m", "org/n"))) for name in NAMES}
)  # fmt: skip
presents = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(
            replica, st.just(name), st.sampled_from(State), st.sampled_from(Goal), gpu=st.sampled_from(GPUS),
            after=st.none() | st.builds(assignment, st.just(name), st.sampled_from(GPUS)),
            cause=st.none() | st.just(QUARANTINED),
        )
        for name in NAMES
    },
)  # fmt: skip
some = st.frozensets(st.sampled_from(NAMES))


def carried_out(orders: list[Order], present: dict[str, ReplicaSnapshot], removals: set[str]) -> tuple[dict[str, Assignment], set[str]]:  # fmt: skip
    """What each replica runs next, and who leaves, once the orders are carried out."""
    after = {name: each.target for name, each in present.items()}
    leaving = set(removals)
    for order in orders:
        if order.assignment is not None:
            after[order.replica] = order.assignment
        if order.placed is False:
            leaving.add(order.replica)
        elif order.placed or order.replica not in present:
            leaving.discard(order.replica)
    return after, leaving


@settings(deadline=None)
@given(targets, presents, some, some)
def test_an_apply_leads_every_replica_to_its_target(
    target: dict[str, Assignment], present: dict[str, ReplicaSnapshot], removed: frozenset[str], rolled: frozenset[str]
) -> None:  # fmt: skip
    removals = removed & present.keys()
    before = {name: each.target for name, each in present.items()}
    found = changes(before, list(target.values()), removals)
    orders = to_reach(target, found, present, removals, lambda change: change.replica in rolled and change.action in {"start", "replace"})  # fmt: skip
    assert len({order.replica for order in orders}) == len(orders), "one order a replica"
    after, leaving = carried_out(orders, present, set(removals))
    assert after.keys() - leaving == target.keys()
    by_roll = {c.replica for c in found if c.replica in rolled and c.action == "replace"}
    for name, wanted in target.items():
        assert name in by_roll or same_process(after[name], wanted)
    for order in orders:
        created = order.replica not in present
        assert not created or order.assignment is not None
        # A change that needs no new process never starts one anew.
        if not created and order.event is not None and order.event.kind is EventKind.RESTART:
            assert not same_process(before[order.replica], target[order.replica])


@given(targets, presents)
def test_what_is_where_it_is_to_be_is_left_alone(
    target: dict[str, Assignment], present: dict[str, ReplicaSnapshot]
) -> None:
    """An apply of what is applied already orders nothing but what an order to go on means."""
    del target
    there = {name: each.target for name, each in present.items()}
    orders = to_reach(there, changes(there, list(there.values())), present, (), lambda _change: False)
    assert {order.event.kind for order in orders if order.event} <= {EventKind.WANTED}


@given(targets, presents, some, some)
def test_a_change_that_is_turned_back_ends_at_what_ran_before(
    former: dict[str, Assignment], present: dict[str, ReplicaSnapshot], added: frozenset[str], pending: frozenset[str]
) -> None:  # fmt: skip
    added -= former.keys()
    orders = to_turn_back(former, present, (), added=added, stays=present.keys(), pending=pending)
    after, leaving = carried_out(orders, present, set())
    assert leaving == added & present.keys()
    for name, wanted in former.items():
        assert name in pending & present.keys() or after[name] == wanted
    # Who an operator has stopped stays stopped.
    assert all(order.event is None for order in orders if order.replica in former.keys() & present.keys())


@given(targets, presents, st.frozensets(st.sampled_from(GPUS), min_size=1), st.booleans())
def test_nobody_is_left_on_a_gpu_that_is_set_aside_but_who_has_no_other(
    target: dict[str, Assignment], present: dict[str, ReplicaSnapshot], gone: frozenset[str], kill: bool
) -> None:  # fmt: skip
    cause = QUARANTINED if kill else None
    orders = to_move_off(gone, target, present, blocked=gone, kill=cause, spare_last=False)
    concerned = {
        name for name, each in present.items()
        if {*each.target.gpu_uuids, *each.assignment.gpu_uuids} & gone
    }  # fmt: skip
    assert {order.replica for order in orders} == concerned
    for order in orders:
        assert order.assignment is None or not set(order.assignment.gpu_uuids) & gone
        assert (order.assignment is None) == (order.why == "waits for the release")
        state = present[order.replica].r.state
        if kill and state in {State.READY, State.UNHEALTHY, State.STARTING, State.DRAINING}:
            assert order.event is not None
            assert (order.event.kind, order.event.generation, order.event.cause) == (
                EventKind.GPU_FAULT,
                3,
                cause,
            )
        assert order.placed is None, "whether it has a place is not decided here"


def test_the_last_ready_replica_of_a_model_is_spared_where_it_is_asked_for() -> None:
    present = {"a-0": replica("a-0"), "b-0": replica("b-0", gpu="G1")}
    (order,) = to_move_off({"G0"}, {}, present, blocked={"G0"}, kill=None, spare_last=True)
    assert (order.event, order.assignment, order.why[:13]) == (None, None, "goes on there")
    both = present | {"a-1": replica("a-1", gpu="G1")}
    (order,) = to_move_off({"G0"}, {}, both, blocked={"G0"}, kill=None, spare_last=True)
    assert order.event is not None
    assert order.event.kind is EventKind.RESTART


@given(targets, presents, some)
def test_after_a_release_nothing_that_runs_is_touched(
    target: dict[str, Assignment], present: dict[str, ReplicaSnapshot], removed: frozenset[str]
) -> None:
    orders = to_come_back(target, present, removed & present.keys(), blocked={"G2"})
    for order in orders:
        assert order.assignment is not None
        assert order.assignment.gpu_uuids != ("G2",)
        if order.replica in present and order.replica not in removed:
            assert present[order.replica].r.state is State.FAILED


@given(presents, some, st.booleans())
def test_at_the_end_everybody_leaves(
    present: dict[str, ReplicaSnapshot], removed: frozenset[str], drain: bool
) -> None:  # fmt: skip
    removals = removed & present.keys()
    orders = to_end(present, removals, drain=drain)
    assert {order.replica for order in orders if order.placed is False} == present.keys()
    for order in orders:
        told = order.replica in removals and present[order.replica].r.goal is Goal.STOP
        if not drain:
            assert order.assignment is not None
            assert order.assignment.profile.limits.drain_s == 0
            assert order.event is not None
        else:
            assert (order.event is None) == told, "one that drains already keeps its deadline"


@pytest.mark.parametrize("goal", [Goal.STOP, Goal.SERVE])
def test_a_removal_that_has_been_told_is_not_told_again(goal: Goal) -> None:
    present = {"a-0": replica("a-0", State.DRAINING, goal)}
    found = changes({"a-0": present["a-0"].target}, [], {"a-0"})
    (order,) = to_reach({}, found, present, {"a-0"}, lambda _change: False)
    assert (order.event is None) == (goal is Goal.STOP)
    assert order == replace(order, placed=False)
