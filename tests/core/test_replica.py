"""What happens to a replica, told as stories."""

from __future__ import annotations

import pytest

from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.events import (
    ArmTimer,
    CancelTimers,
    Effect,
    Event,
    EventKind,
    KillTree,
    SaveEvidence,
    SetRotation,
    Spawn,
    Terminate,
    Timer,
)
from gpuserved.core.profile import HealthPolicy, Limits, RestartPolicy
from gpuserved.core.replica import step
from gpuserved.core.restart import RestartHistory
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State

CONTEXT = Context()
HUNG = Cause(CauseKind.HUNG, "no step for 120 s with 3 requests running")
GONE = from_exit(ExitInfo(None, 9, 0.0))


def play(
    r: Replica, *kinds: EventKind, context: Context = CONTEXT, cause: Cause | None = None
) -> tuple[Replica, tuple[Effect, ...]]:
    """Events of the present generation, one after the other; the effects of the last."""
    effects: tuple[Effect, ...] = ()
    for kind in kinds:
        r, effects = step(r, Event(kind, r.generation, cause), context)
    return r, effects


@pytest.fixture
def ready() -> Replica:
    r, effects = play(Replica(), EventKind.START, EventKind.PROBE_UP)
    assert r.state is State.READY
    assert effects == (CancelTimers(), SetRotation(True), ArmTimer(Timer.STABLE, 600.0))
    return r


def test_a_start_spawns_the_next_generation_and_watches_for_a_stall() -> None:
    r, effects = play(Replica(generation=4), EventKind.START)
    assert (r.state, r.goal, r.generation) == (State.STARTING, Goal.SERVE, 5)
    assert effects == (CancelTimers(), Spawn(5), ArmTimer(Timer.START_STALL, 600.0))


def test_the_first_start_of_all_is_generation_1() -> None:
    r, effects = play(Replica(), EventKind.START)
    assert (r.generation, effects[1]) == (1, Spawn(1))


def test_an_exit_with_code_zero_is_a_crash(ready: Replica) -> None:
    cause = from_exit(ExitInfo(0, None, 0.0))
    r, effects = play(ready, EventKind.EXITED, cause=cause)
    assert r.state is State.BACKOFF
    assert r.history.crashes_in_a_row == 1
    assert r.reason == "API process ended by itself (exit code 0)"
    assert ArmTimer(Timer.BACKOFF, 1.0) in effects


def test_a_death_takes_it_out_of_rotation_before_the_tree_is_swept(ready: Replica) -> None:
    r, effects = play(ready, EventKind.DYING, cause=GONE)
    assert r.state is State.STOPPING
    assert effects[1:] == (SetRotation(False), KillTree(), ArmTimer(Timer.KILL, 10.0))
    r, effects = play(r, EventKind.EXITED, cause=GONE)
    assert r.state is State.BACKOFF
    assert r.cause == GONE


def test_a_restart_after_a_crash_counts_and_says_what_it_replaced(ready: Replica) -> None:
    r, effects = play(ready, EventKind.DYING, EventKind.EXITED, EventKind.BACKOFF_ELAPSED, cause=GONE)
    assert Spawn(ready.generation + 1) in effects
    r, _ = play(r, EventKind.PROBE_UP)
    assert r.history.restarts == 1
    assert r.reason == "restarted after: API process killed by SIGKILL"
    assert r.cause is None


def test_an_operators_restart_is_not_counted_and_forgives(ready: Replica) -> None:
    r, _ = play(
        ready, EventKind.DYING, EventKind.EXITED, EventKind.BACKOFF_ELAPSED, EventKind.PROBE_UP, cause=GONE
    )
    r, _ = play(r, EventKind.RESTART, EventKind.DRAINED, EventKind.EXITED, EventKind.PROBE_UP)
    assert r.state is State.READY
    assert r.history.restarts == 1
    assert r.history.crashes_in_a_row == 0
    assert r.reason == ""


def test_start_while_the_old_tree_dies_waits_for_its_end(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP, EventKind.DRAINED)
    assert (r.state, r.goal) == (State.STOPPING, Goal.STOP)
    r, effects = play(r, EventKind.START)
    assert (r.state, r.goal, effects) == (State.STOPPING, Goal.RESTART, ())
    r, effects = play(r, EventKind.EXITED)
    assert r.state is State.STARTING
    assert Spawn(ready.generation + 1) in effects
    assert r.history.crashes_in_a_row == 0


def test_start_then_stop_while_the_old_tree_dies_stays_stopped(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP, EventKind.DRAINED, EventKind.START, EventKind.STOP, EventKind.EXITED)
    assert r.state is State.STOPPED


def test_a_stop_drains_then_terminates_then_kills(ready: Replica) -> None:
    context = Context(limits=Limits(drain_s=42.0, term_grace_s=3.0))
    r, effects = play(ready, EventKind.STOP, context=context)
    assert effects[1:] == (SetRotation(False), ArmTimer(Timer.DRAIN, 42.0))
    r, effects = play(r, EventKind.DRAIN_TIMEOUT, context=context)
    assert effects[2:] == (Terminate(), ArmTimer(Timer.KILL, 3.0))
    for _ in range(3):
        r, effects = play(r, EventKind.KILL_TIMEOUT, context=context)
        assert effects == (KillTree(), ArmTimer(Timer.KILL, 3.0))
        assert r.state is State.STOPPING
    r, _ = play(r, EventKind.EXITED, context=context)
    assert r.state is State.STOPPED


def test_a_stop_during_the_load_does_not_wait_for_requests() -> None:
    r, _ = play(Replica(), EventKind.START)
    r, effects = play(r, EventKind.STOP)
    assert r.state is State.STOPPING
    assert Terminate() in effects


def test_a_spawn_that_fails_after_a_stop_ends_stopped() -> None:
    r, _ = play(Replica(), EventKind.START, EventKind.STOP)
    r, _ = play(r, EventKind.SPAWN_FAILED, cause=Cause(CauseKind.SPAWN_FAILED, "no such file"))
    assert r.state is State.STOPPED
    assert r.history.crashes_in_a_row == 0


def test_a_spawn_that_fails_backs_off_with_its_cause() -> None:
    r, _ = play(Replica(), EventKind.START)
    r, _ = play(r, EventKind.SPAWN_FAILED)
    assert r.state is State.BACKOFF
    assert r.reason == "could not be started"


def test_an_operators_drain_keeps_the_process_until_undrain(ready: Replica) -> None:
    r, effects = play(ready, EventKind.DRAIN)
    assert (r.state, r.goal, r.reason) == (State.DRAINING, Goal.HOLD, "drained by operator")
    assert effects == (CancelTimers(), SetRotation(False))
    for kind in (EventKind.DRAINED, EventKind.DRAIN_TIMEOUT):
        assert play(r, kind) == (r, ()), "no timer ends an operator's drain"
    r, effects = play(r, EventKind.UNDRAIN)
    assert r.state is State.READY
    assert SetRotation(True) in effects


def test_undrain_of_what_is_being_stopped_is_refused(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP)
    with pytest.raises(NotAllowed, match="being stopped"):
        step(r, Event(EventKind.UNDRAIN), CONTEXT)


def test_start_during_the_drain_of_a_stop_makes_it_a_restart(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP, EventKind.START)
    assert (r.goal, r.reason) == (Goal.RESTART, "draining before restart")
    r, _effects = play(r, EventKind.DRAINED, EventKind.EXITED)
    assert r.state is State.STARTING


def test_one_that_is_wanted_again_goes_on_where_its_process_is_whole(ready: Replica) -> None:
    r, effects = play(ready, EventKind.STOP, EventKind.WANTED)
    assert (r.state, r.goal, r.generation) == (State.READY, Goal.SERVE, ready.generation)
    assert SetRotation(True) in effects
    assert play(r, EventKind.DRAINED) == (r, ()), "an answer about the drain that is over"


def test_one_that_is_wanted_again_as_something_else_is_restarted(ready: Replica) -> None:
    r, effects = play(ready, EventKind.STOP, EventKind.WANTED, context=Context(moves=True))
    assert (r.state, r.goal, effects) == (State.DRAINING, Goal.RESTART, ())


def test_one_that_is_wanted_again_after_its_signal_is_started_anew(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP, EventKind.DRAINED, EventKind.WANTED)
    assert (r.state, r.goal) == (State.STOPPING, Goal.RESTART)
    r, effects = play(r, EventKind.EXITED)
    assert r.state is State.STARTING
    assert Spawn(ready.generation + 1) in effects


def test_being_wanted_changes_nothing_for_one_that_serves_or_that_an_operator_drained(ready: Replica) -> None:
    assert play(ready, EventKind.WANTED) == (ready, ())
    held, _ = play(ready, EventKind.DRAIN)
    assert play(held, EventKind.WANTED) == (held, ())


@pytest.mark.parametrize("end", [EventKind.HUNG, EventKind.RESTART, EventKind.REPLACE])
def test_being_wanted_is_no_news_to_one_that_comes_back_anyway(ready: Replica, end: EventKind) -> None:
    """A killed one still counts its crash, and a start on trial still owes its canary."""
    r, _ = play(ready, end, EventKind.DRAINED, cause=HUNG)
    assert r.state is State.STOPPING
    assert play(r, EventKind.WANTED) == (r, ())


def test_one_that_waits_to_be_started_again_waits_no_longer_and_its_crash_counts(ready: Replica) -> None:
    r, _ = play(ready, EventKind.EXITED, EventKind.WANTED, cause=GONE)
    assert (r.state, r.history.crashes_in_a_row, r.history.restarts) == (State.STARTING, 1, 1)


def test_a_hang_is_killed_with_evidence_and_the_cause_survives_the_kill(ready: Replica) -> None:
    stalled = Cause(CauseKind.HUNG, "no step for 30 s")
    r, effects = play(ready, EventKind.STALLED, cause=stalled)
    assert (r.state, r.reason) == (State.UNHEALTHY, "no step for 30 s")
    assert ArmTimer(Timer.UNHEALTHY, 90.0) in effects
    r, effects = play(r, EventKind.HUNG, cause=HUNG)
    assert effects[1:] == (SetRotation(False), SaveEvidence(HUNG), KillTree(), ArmTimer(Timer.KILL, 10.0))
    r, _ = play(r, EventKind.DYING, EventKind.EXITED, cause=GONE)
    assert r.state is State.BACKOFF
    assert r.reason == HUNG.message, "not 'killed by SIGKILL', which was our own doing"


def test_an_unhealthy_replica_that_recovers_is_not_a_crash(ready: Replica) -> None:
    r, effects = play(ready, EventKind.PROBE_DOWN, EventKind.PROBE_UP)
    assert r.state is State.READY
    assert SetRotation(True) in effects
    assert r.history == ready.history


def test_an_old_cause_does_not_explain_a_later_death(ready: Replica) -> None:
    r, _ = play(ready, EventKind.PROBE_DOWN, cause=Cause(CauseKind.UNHEALTHY, "no answer in 5 s"))
    r, _ = play(r, EventKind.DYING, EventKind.EXITED, cause=GONE)
    assert r.cause == GONE


def test_an_unhealthy_replica_that_stays_so_is_killed_for_that(ready: Replica) -> None:
    down = Cause(CauseKind.UNHEALTHY, "no answer in 5 s")
    r, _ = play(ready, EventKind.PROBE_DOWN, cause=down)
    r, effects = play(r, EventKind.UNHEALTHY_TIMEOUT)
    assert SaveEvidence(down) in effects
    r, _ = play(r, EventKind.EXITED, cause=GONE)
    assert r.reason == "no answer in 5 s"


def test_a_stalled_start_is_killed_and_counts_as_a_crash() -> None:
    stalled = Cause(CauseKind.START_STALLED, "no log line and no CPU time for 600 s")
    r, _ = play(Replica(), EventKind.START)
    r, effects = play(r, EventKind.START_STALLED, cause=stalled)
    assert KillTree() in effects
    r, _ = play(r, EventKind.EXITED, cause=GONE)
    assert (r.state, r.reason) == (State.BACKOFF, stalled.message)
    assert r.history.crashes_in_a_row == 1


def test_a_hang_while_draining_for_a_stop_ends_stopped(ready: Replica) -> None:
    r, _ = play(ready, EventKind.STOP, EventKind.HUNG, EventKind.EXITED, cause=HUNG)
    assert r.state is State.STOPPED


def test_a_cause_that_cannot_heal_waits_for_the_operator_even_on_the_last_replica() -> None:
    bad = Cause(CauseKind.BAD_FLAG, "unrecognized arguments: --no-such-flag")
    context = Context(last_of_model=True)
    r, _ = play(Replica(), EventKind.START, context=context)
    r, effects = play(r, EventKind.EXITED, cause=bad, context=context)
    assert r.state is State.FAILED
    assert r.cause == bad
    assert not [e for e in effects if isinstance(e, ArmTimer)]
    r, effects = play(r, EventKind.START, context=context)
    assert r.state is State.STARTING


def test_what_cannot_heal_is_shown_even_after_other_crashes(ready: Replica) -> None:
    bad = Cause(CauseKind.MODEL_MISSING, "no such folder")
    r, _ = play(ready, EventKind.EXITED, EventKind.BACKOFF_ELAPSED, cause=GONE)
    r, _ = play(r, EventKind.EXITED, cause=bad)
    assert (r.state, r.cause) == (State.FAILED, bad)


@pytest.mark.parametrize("rest", [(30.0, 120.0, 90.0), (30.0, 30.0, 1.0)])
def test_the_unhealthy_deadline_is_what_is_left_of_the_hang_timeout(
    ready: Replica, rest: tuple[float, float, float]
) -> None:
    rotation_s, kill_s, wanted_s = rest
    context = Context(health=HealthPolicy(hang_rotation_s=rotation_s, hang_timeout_s=kill_s))
    _, effects = play(ready, EventKind.PROBE_DOWN, context=context)
    assert ArmTimer(Timer.UNHEALTHY, wanted_s) in effects


def test_stable_ready_forgives_the_crashes_but_not_the_count(ready: Replica) -> None:
    context = Context(restart=RestartPolicy(budget=2))
    r = ready
    for _ in range(4):
        r, _ = play(
            r, EventKind.EXITED, EventKind.BACKOFF_ELAPSED, EventKind.PROBE_UP, EventKind.STABLE,
            context=context, cause=GONE,
        )  # fmt: skip
        assert r.state is State.READY
    assert r.history.restarts == 4
    assert r.history.crashes_in_a_row == 0


def test_a_start_that_an_earlier_daemon_did_not_make_is_no_restart() -> None:
    history = RestartHistory(crashes_in_a_row=2, restarts=3, first_cause=GONE, last_cause=GONE)
    waiting = Replica(State.BACKOFF, Goal.SERVE, generation=7, history=history)
    r, effects = play(waiting, EventKind.TAKE_UP)
    assert (r.state, r.generation, r.history) == (State.STARTING, 8, history)
    assert Spawn(8) in effects
