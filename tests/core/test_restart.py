from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.cause import Cause, CauseKind, Healing
from gpuserved.core.profile import RestartPolicy
from gpuserved.core.restart import Backoff, GiveUp, RestartHistory, decide, forgive, record_crash

MAYBE = Cause(CauseKind.EXITED, "exit code 1")
POLICY = RestartPolicy()


def after(crashes: int, cause: Cause = MAYBE) -> RestartHistory:
    history = RestartHistory()
    for _ in range(crashes):
        history = record_crash(history, cause)
    return history


def test_the_first_cause_of_a_row_is_kept_and_the_last_one_too() -> None:
    first, echo = Cause(CauseKind.OUT_OF_MEMORY, "out of memory"), MAYBE
    history = record_crash(record_crash(RestartHistory(), first), echo)
    assert (history.first_cause, history.last_cause, history.crashes_in_a_row) == (first, echo, 2)
    clean = forgive(history)
    assert (clean.first_cause, clean.crashes_in_a_row, clean.restarts) == (None, 0, history.restarts)


@pytest.mark.parametrize(("crashes", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0)])
def test_delays_double(crashes: int, delay_s: float) -> None:
    what = decide(after(crashes), MAYBE, POLICY, last_of_model=False, jitter=0.0)
    assert what == Backoff(delay_s, "exit code 1")


@pytest.mark.parametrize("jitter", [-1.0, 1.0])
def test_jitter_spreads_by_a_fifth(jitter: float) -> None:
    what = decide(after(3), MAYBE, POLICY, last_of_model=False, jitter=jitter)
    assert isinstance(what, Backoff)
    assert what.delay_s == pytest.approx(4.0 * (1 + 0.2 * jitter))


@pytest.mark.parametrize("last", [False, True])
def test_the_budget_ends_in_failed_with_the_first_cause(last: bool) -> None:
    history = record_crash(after(4), Cause(CauseKind.KILLED, "killed by SIGKILL"))
    what = decide(history, MAYBE, POLICY, last_of_model=last, jitter=0.0)
    assert what == GiveUp(300.0 if last else None, "5 crashes in a row, first: exit code 1")


@pytest.mark.parametrize("kind", [k for k in CauseKind if Cause(k, "").healing is Healing.BY_ITSELF])
def test_a_transient_cause_is_retried_even_from_failed(kind: CauseKind) -> None:
    what = decide(after(5), Cause(kind, "x"), POLICY, last_of_model=False, jitter=0.0)
    assert isinstance(what, GiveUp)
    assert what.retry_s == 300.0


@pytest.mark.parametrize("kind", [CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.DOES_NOT_FIT])
def test_what_cannot_heal_waits_at_the_first_crash(kind: CauseKind) -> None:
    what = decide(after(1), Cause(kind, "no"), POLICY, last_of_model=True, jitter=0.0)
    assert what == GiveUp(None, "no (will not heal by itself)")


@given(crashes=st.integers(1, 5000), jitter=st.floats(-1, 1), spread=st.floats(0, 1))
def test_a_delay_is_never_negative_nor_far_beyond_the_cap(crashes: int, jitter: float, spread: float) -> None:
    """5000 doublings are no float any more."""
    policy = RestartPolicy(budget=10_000, jitter=spread)
    history = RestartHistory(crashes_in_a_row=crashes, first_cause=MAYBE)
    what = decide(history, MAYBE, policy, last_of_model=False, jitter=jitter)
    assert isinstance(what, Backoff)
    assert 0.0 <= what.delay_s <= policy.backoff_max_s * (1 + spread)


def test_a_row_of_crashes_is_counted_from_one_and_ends_at_the_budget() -> None:
    assert after(1).crashes_in_a_row == 1
    policy = RestartPolicy(budget=3)
    assert isinstance(decide(after(2), MAYBE, policy, last_of_model=False, jitter=0.0), Backoff)
    assert isinstance(decide(after(3), MAYBE, policy, last_of_model=False, jitter=0.0), GiveUp)
    capped = decide(after(30), MAYBE, RestartPolicy(budget=99), last_of_model=False, jitter=0.0)
    assert capped == Backoff(300.0, "exit code 1")
    slow = decide(after(2), MAYBE, RestartPolicy(backoff_s=1.5), last_of_model=False, jitter=0.0)
    assert slow == Backoff(3.0, "exit code 1")


def test_a_row_whose_first_cause_is_not_known_names_the_present_one() -> None:
    what = decide(RestartHistory(crashes_in_a_row=5), MAYBE, POLICY, last_of_model=False, jitter=0.0)
    assert what == GiveUp(None, "5 crashes in a row, first: exit code 1")


def test_a_delay_is_not_negative_however_wide_the_jitter() -> None:
    what = decide(after(1), MAYBE, RestartPolicy(jitter=3.0), last_of_model=False, jitter=-1.0)
    assert what == Backoff(0.0, "exit code 1")
