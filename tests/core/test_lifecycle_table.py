"""Properties of the lifecycle table as a whole: every state against every event."""

from __future__ import annotations

import itertools

import pytest

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import (
    OPERATOR_EVENTS,
    TIMER_EVENTS,
    ArmTimer,
    CancelTimers,
    Event,
    EventKind,
    KillTree,
    SetRotation,
    Spawn,
    Terminate,
)
from gpuserved.core.replica import TABLE, allowed, step
from gpuserved.core.restart import RestartHistory
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State

GENERATION = 7
CAUSE = Cause(CauseKind.EXITED, "ended")
# Where the process exists, as far as the owner knows.
ALIVE = {State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING, State.STOPPING}
# The goals a state can have; the walk below proves that no other pair is reachable.
GOALS = {
    State.STOPPED: {Goal.STOP},
    State.STARTING: {Goal.SERVE, Goal.REPLACE},
    State.READY: {Goal.SERVE},
    State.UNHEALTHY: {Goal.SERVE},
    State.DRAINING: {Goal.STOP, Goal.RESTART, Goal.REPLACE, Goal.HOLD},
    State.STOPPING: {Goal.STOP, Goal.RESTART, Goal.REPLACE, Goal.SERVE},
    State.BACKOFF: {Goal.SERVE},
    State.FAILED: {Goal.SERVE},
}
PAIRS = [(state, goal) for state, goals in GOALS.items() for goal in sorted(goals)]


def replica(state: State, goal: Goal, crashes: int = 0) -> Replica:
    history = RestartHistory(crashes_in_a_row=crashes, first_cause=CAUSE if crashes else None)
    return Replica(state=state, goal=goal, generation=GENERATION, history=history)


def event(kind: EventKind) -> Event:
    if kind in OPERATOR_EVENTS:
        return Event(kind)
    return Event(kind, GENERATION, CAUSE)


def successors(state: State, goal: Goal, kinds: set[EventKind]) -> set[tuple[State, Goal]]:
    """Where one event of `kinds` can lead, with a fresh and with a spent restart budget."""
    found = set()
    for kind, crashes in itertools.product(kinds, (0, 99)):
        try:
            moved, _ = step(replica(state, goal, crashes), event(kind), Context())
        except NotAllowed:
            continue
        found.add((moved.state, moved.goal))
    return found


def reachable(start: set[tuple[State, Goal]], kinds: set[EventKind]) -> set[tuple[State, Goal]]:
    seen, todo = set(start), list(start)
    while todo:
        fresh = successors(*todo.pop(), kinds) - seen
        seen |= fresh
        todo.extend(fresh)
    return seen


@pytest.mark.parametrize(("state", "goal"), PAIRS)
@pytest.mark.parametrize("kind", list(EventKind))
def test_every_state_answers_every_event(state: State, goal: Goal, kind: EventKind) -> None:
    before = replica(state, goal)
    if kind not in TABLE[state]:
        if kind in OPERATOR_EVENTS:
            with pytest.raises(NotAllowed, match=f"{state.value} cannot {kind.value}; it can: "):
                step(before, event(kind), Context())
        else:
            assert step(before, event(kind), Context()) == (before, ())
        return
    try:
        after, effects = step(before, event(kind), Context())
    except NotAllowed:
        assert (kind, state) == (EventKind.UNDRAIN, State.DRAINING)
        assert goal is not Goal.HOLD
        return
    assert after.goal in GOALS[after.state]
    if after.state is not before.state:
        assert effects[0] == CancelTimers(), "a change of state forgets the old state's timers first"
    if after.generation != before.generation:
        assert Spawn(after.generation) in effects
        assert after.generation == before.generation + 1


@pytest.mark.parametrize(("state", "goal"), PAIRS)
@pytest.mark.parametrize("kind", list(EventKind))
def test_nothing_is_spawned_beside_a_process_that_may_live(state: State, goal: Goal, kind: EventKind) -> None:
    """The one thing that ends a process for the owner is EXITED, or SPAWN_FAILED where none came to be."""
    try:
        _, effects = step(replica(state, goal), event(kind), Context())
    except NotAllowed:
        effects = ()
    spawns = any(isinstance(e, Spawn) for e in effects)
    ended = kind in {EventKind.EXITED, EventKind.SPAWN_FAILED}
    assert not (spawns and state in ALIVE and not ended)


@pytest.mark.parametrize(("state", "goal"), PAIRS)
@pytest.mark.parametrize("kind", list(EventKind))
def test_rotation_follows_the_state(state: State, goal: Goal, kind: EventKind) -> None:
    try:
        after, effects = step(replica(state, goal), event(kind), Context())
    except NotAllowed:
        return
    rotation = [e.admit for e in effects if isinstance(e, SetRotation)]
    if after.state is State.READY and state is not State.READY:
        assert rotation == [True]
    else:
        assert True not in rotation
    if state is State.READY and after.state is not State.READY:
        assert rotation
        assert effects.index(SetRotation(False)) < min(
            (i for i, e in enumerate(effects) if isinstance(e, (Terminate, KillTree))), default=len(effects)
        ), "out of rotation before any signal"


@pytest.mark.parametrize(("state", "goal"), PAIRS)
@pytest.mark.parametrize("kind", list(EventKind))
def test_a_stale_generation_changes_nothing(state: State, goal: Goal, kind: EventKind) -> None:
    before = replica(state, goal)
    for generation in (GENERATION - 1, GENERATION + 1):
        assert step(before, Event(kind, generation, CAUSE), Context()) == (before, ())


def test_every_state_and_no_unexpected_goal_is_reachable() -> None:
    found = reachable({(State.STOPPED, Goal.STOP)}, set(EventKind))
    assert found == set(PAIRS)


@pytest.mark.parametrize(("state", "goal"), PAIRS)
def test_after_stop_a_path_to_stopped_exists_without_an_operator(state: State, goal: Goal) -> None:
    moved, _ = step(replica(state, goal), Event(EventKind.STOP), Context())
    by_itself = set(EventKind) - OPERATOR_EVENTS
    assert (State.STOPPED, Goal.STOP) in reachable({(moved.state, moved.goal)}, by_itself)
    assert moved.goal is Goal.STOP


@pytest.mark.parametrize(("state", "goal"), PAIRS)
@pytest.mark.parametrize("kind", [EventKind.START, EventKind.RESTART, EventKind.REPLACE, EventKind.WANTED])
@pytest.mark.parametrize("moves", [False, True])
def test_after_start_or_restart_a_path_to_ready_exists(
    state: State, goal: Goal, kind: EventKind, moves: bool
) -> None:
    moved, _ = step(replica(state, goal), Event(kind), Context(moves=moves))
    if kind is EventKind.WANTED and goal is Goal.HOLD:
        assert moved == replica(state, goal), "an operator's drain lasts until its undrain"
        return
    assert (State.READY, Goal.SERVE) in reachable(
        {(moved.state, moved.goal)}, set(EventKind) - OPERATOR_EVENTS
    )


@pytest.mark.parametrize(("state", "goal"), PAIRS)
def test_once_stopping_for_good_nothing_but_the_operator_starts_it_again(state: State, goal: Goal) -> None:
    moved, _ = step(replica(state, goal), Event(EventKind.STOP), Context())
    later = reachable({(moved.state, moved.goal)}, set(EventKind) - OPERATOR_EVENTS)
    assert {s for s, _ in later} <= {State.DRAINING, State.STOPPING, State.STOPPED}


@pytest.mark.parametrize("state", list(State))
def test_start_stop_and_restart_are_known_everywhere(state: State) -> None:
    assert {EventKind.START, EventKind.STOP, EventKind.RESTART} <= allowed(state)


def test_a_refusal_says_what_is_possible() -> None:
    with pytest.raises(NotAllowed, match="STOPPED cannot drain; it can: restart, start, stop"):
        step(Replica(), Event(EventKind.DRAIN), Context())


def test_every_timer_that_is_armed_is_known_to_the_state_that_armed_it() -> None:
    armed = set()
    for (state, goal), kind, crashes in itertools.product(PAIRS, EventKind, (0, 99)):
        try:
            after, effects = step(replica(state, goal, crashes), event(kind), Context(last_of_model=True))
        except NotAllowed:
            continue
        for effect in effects:
            if isinstance(effect, ArmTimer):
                armed.add(effect.timer)
                assert effect.delay_s > 0
                assert TIMER_EVENTS[effect.timer] in TABLE[after.state]
    assert armed == set(TIMER_EVENTS)


def test_every_rule_of_the_table_is_for_an_event_that_can_come_there() -> None:
    """A row that nothing uses would be a promise nobody keeps."""
    assert set().union(*TABLE.values()) == set(EventKind)
    assert set(TABLE) == set(State)
