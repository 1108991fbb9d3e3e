"""Rolling changes under a simulated fleet: whatever its replicas do, capacity holds and the change ends whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.rollout import (
    Action,
    Direction,
    Leave,
    Outcome,
    Replace,
    Rollout,
    Seen,
    TurnBack,
    decide,
)
from gpuserved.core.state import Goal, State

READY = Seen(State.READY, Goal.SERVE, 1)


def settle(rollout: Rollout, seen: dict[str, Seen]) -> tuple[Rollout, list[Action]]:
    """Decide until nothing changes, as the fleet does."""
    actions: list[Action] = []
    for _ in range(50):
        before = rollout
        rollout, action = decide(before, seen)
        if action is not None:
            actions.append(action)
        if rollout == before:
            return rollout, actions
    raise AssertionError("it never comes to rest")


def ready(*names: str) -> dict[str, Seen]:
    return dict.fromkeys(names, READY)


def test_one_after_the_other() -> None:
    seen = ready("m-0", "m-1")
    rollout, actions = settle(Rollout(pending=("m-0", "m-1")), seen)
    assert actions == [Replace("m-0")]
    seen["m-0"] = Seen(State.DRAINING, Goal.REPLACE, 1)
    assert settle(rollout, seen) == (rollout, [])
    seen["m-0"] = Seen(State.STARTING, Goal.REPLACE, 2)
    assert settle(rollout, seen) == (rollout, [])
    seen["m-0"] = Seen(State.READY, Goal.SERVE, 2)
    rollout, actions = settle(rollout, seen)
    assert actions == [Replace("m-1")]
    seen["m-1"] = Seen(State.READY, Goal.SERVE, 2)
    rollout, actions = settle(rollout, seen)
    assert (rollout.outcome, actions) == (Outcome.DONE, [])


def test_a_replica_that_is_down_goes_first() -> None:
    seen = ready("m-0", "m-1") | {"m-2": Seen(State.FAILED, Goal.SERVE, 5, "bad flag")}
    _, actions = settle(Rollout(pending=("m-0", "m-1", "m-2")), seen)
    assert actions == [Replace("m-2")]


def test_nothing_is_taken_away_while_another_one_is_down() -> None:
    """The one that is down is not part of the change, and is capacity all the same."""
    seen = ready("m-0") | {"n-0": Seen(State.BACKOFF, Goal.SERVE, 3)}
    rollout, actions = settle(Rollout(pending=("m-0",)), seen)
    assert actions == []
    assert rollout.reason == "waits: n-0 is BACKOFF"
    _, actions = settle(rollout, ready("m-0", "n-0"))
    assert actions == [Replace("m-0")]


def test_a_failure_turns_back_what_was_replaced_already() -> None:
    seen = ready("m-0", "m-1", "m-2")
    rollout = Rollout(pending=("m-2",), done=("m-0",), current="m-1", since_generation=1)
    seen["m-1"] = Seen(State.BACKOFF, Goal.SERVE, 2, "canary: /v1/completions answered 500: no")
    rollout, actions = settle(rollout, seen)
    assert actions == [TurnBack(()), Replace("m-1")]
    assert rollout.direction is Direction.BACK
    assert rollout.pending == ("m-0",)
    assert rollout.reason == "m-1: canary: /v1/completions answered 500: no"
    seen["m-1"] = Seen(State.READY, Goal.SERVE, 3)
    rollout, actions = settle(rollout, seen)
    assert actions == [Replace("m-0")]
    seen["m-0"] = Seen(State.READY, Goal.SERVE, 3)
    rollout, actions = settle(rollout, seen)
    assert (rollout.outcome, actions) == (Outcome.ROLLED_BACK, [])
    assert "answered 500" in rollout.reason


def test_a_start_that_was_broken_off_with_its_daemon_is_no_failure() -> None:
    """Found so by the next daemon, before the owner has taken the start up again."""
    seen = ready("m-0", "m-1") | {"m-1": Seen(State.BACKOFF, Goal.SERVE, 2)}
    rollout = Rollout(pending=("m-0",), current="m-1", since_generation=1)
    assert settle(rollout, seen) == (rollout, [])
    seen["m-1"] = Seen(State.READY, Goal.SERVE, 3)
    rollout, actions = settle(rollout, seen)
    assert (rollout.done, actions) == (("m-1",), [Replace("m-0")])


def test_a_failure_with_nothing_to_go_back_to_stops() -> None:
    seen = ready("m-0", "m-1") | {"m-0": Seen(State.FAILED, Goal.SERVE, 2, "bad flag")}
    rollout = Rollout(pending=("m-1",), current="m-0", since_generation=1, reversible=False)
    rollout, actions = settle(rollout, seen)
    assert (rollout.outcome, rollout.reason, actions) == (Outcome.STOPPED, "m-0: bad flag", [])


def test_a_failure_on_the_way_back_leaves_the_others_alone() -> None:
    seen = ready("m-0", "m-1") | {"m-1": Seen(State.BACKOFF, Goal.SERVE, 3, "ended")}
    rollout = Rollout(
        pending=("m-0",), current="m-1", since_generation=2, direction=Direction.BACK, reason="m-1: canary"
    )
    rollout, actions = settle(rollout, seen)
    assert (rollout.outcome, actions) == (Outcome.STOPPED, [])
    assert rollout.reason == "m-1: canary; and with the former settings: m-1: ended"


def test_one_that_is_added_is_stopped_when_the_change_turns_back() -> None:
    seen = ready("m-0") | {"m-1": Seen(State.STOPPED, Goal.STOP, 0)}
    rollout, actions = settle(Rollout(pending=("m-0", "m-1"), added=("m-1",)), seen)
    assert actions == [Replace("m-1")], "it costs nothing, so it goes first"
    assert settle(rollout, seen) == (rollout, []), "its owner has not read the order yet"
    seen["m-1"] = Seen(State.FAILED, Goal.SERVE, 1, "bad flag")
    rollout, actions = settle(rollout, seen)
    assert actions == [TurnBack(("m-1",))]
    assert rollout.outcome is Outcome.ROLLED_BACK, "m-0 was never touched"


@pytest.mark.parametrize("when", ["pending", "current"])
def test_an_operator_stops_a_replica_in_the_middle(when: str) -> None:
    seen = ready("m-0", "m-1")
    if when == "pending":
        seen["m-1"] = Seen(State.STOPPED, Goal.STOP, 1)
        rollout = Rollout(pending=("m-1",), done=("m-0",))
        expected: list[Action] = [Leave("m-1")]
    else:
        seen["m-1"] = Seen(State.STOPPING, Goal.STOP, 1)
        rollout = Rollout(pending=(), done=("m-0",), current="m-1", since_generation=1)
        expected = []
    rollout, actions = settle(rollout, seen)
    assert (rollout.outcome, actions) == (Outcome.DONE, expected)


def test_one_that_an_operator_has_drained_is_waited_for() -> None:
    seen = ready("m-0") | {"m-1": Seen(State.DRAINING, Goal.HOLD, 1)}
    rollout, actions = settle(Rollout(pending=("m-1",), done=("m-0",)), seen)
    assert actions == []
    assert rollout.reason == "waits: m-1 is DRAINING (undrain or stop it)"


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING])
def test_one_that_was_let_go_is_replaced_once_it_is_down(state: State) -> None:
    """An order to one that is on its way out would be taken for an operator's stop, and the change would lose sight of it."""
    seen = {"m-0": READY, "m-1": Seen(state, Goal.STOP, 1)}
    rollout = Rollout(pending=("m-1",), added=("m-1",))
    waiting, actions = settle(rollout, seen)
    assert (actions, waiting.pending, waiting.outcome) == ([], ("m-1",), None)
    assert waiting.reason == f"waits: m-1 is {state.value}"
    seen["m-1"] = Seen(State.STOPPED, Goal.STOP, 1)
    begun, actions = settle(waiting, seen)
    assert (actions, begun.current) == ([Replace("m-1")], "m-1")


@given(st.sets(st.sampled_from(["m-0", "m-1", "m-2", "m-3"]), min_size=1))
def test_replicas_that_are_gone_are_forgotten(names: set[str]) -> None:
    rollout, actions = settle(Rollout(pending=tuple(names)), {})
    assert (rollout.outcome, actions) == (Outcome.DONE, [])


def test_how_many_replicas_it_is_about() -> None:
    assert Rollout(pending=("m-0", "m-1")).total == 2
    assert Rollout(pending=("m-2",), done=("m-0",), current="m-1").total == 3
    assert Rollout(pending=()).total == 0
