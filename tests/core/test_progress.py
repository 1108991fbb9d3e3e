from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.health import ProbeRow
from gpuserved.core.progress import Progress, Verdict


def verdict(progress: Progress, now: float) -> Verdict:
    return progress.verdict(now, rotation_s=30.0, kill_s=120.0)


@pytest.fixture
def busy() -> Progress:
    """At second 100: two requests in the batch, step counter at 7."""
    return Progress().observed(7.0, 2.0, 2, 100.0)


def test_a_flat_counter_under_load_stalls_then_hangs(busy: Progress) -> None:
    for second in range(101, 221):
        busy = busy.observed(7.0, 2.0, 2, float(second))
        wanted = Verdict.MOVING if second < 130 else Verdict.STALLED if second < 220 else Verdict.HUNG
        assert verdict(busy, float(second)) is wanted


def test_one_step_in_a_while_is_slow_and_not_hung(busy: Progress) -> None:
    for i in range(1, 20):
        busy = busy.observed(7.0 + i, 2.0, 2, 100.0 + 29.0 * i)
        assert verdict(busy, 100.0 + 29.0 * i) is Verdict.MOVING


def test_an_engine_that_says_it_is_idle_is_not_hung_whatever_the_router_counts(busy: Progress) -> None:
    idle = busy.observed(7.0, 0.0, 3, 101.0).observed(7.0, 0.0, 3, 900.0)
    assert verdict(idle, 900.0) is Verdict.MOVING


def test_the_clock_starts_with_the_work_and_not_with_the_last_step() -> None:
    idle = Progress().observed(7.0, 0.0, 0, 100.0)
    started = idle.observed(7.0, 1.0, 1, 1000.0)
    assert verdict(started, 1000.0) is Verdict.MOVING
    assert verdict(started.observed(7.0, 1.0, 1, 1031.0), 1031.0) is Verdict.STALLED


def test_scrapes_that_fail_are_no_sign_of_life(busy: Progress) -> None:
    silent = busy.unanswered(2, 160.0)
    assert verdict(silent, 160.0) is Verdict.STALLED
    assert verdict(silent.unanswered(2, 220.0), 220.0) is Verdict.HUNG


def test_scrapes_that_fail_while_nothing_is_asked_of_it_are_no_hang(busy: Progress) -> None:
    silent = busy.unanswered(0, 160.0)
    assert verdict(silent, 900.0) is Verdict.MOVING


def test_a_request_on_a_replica_whose_metrics_broke_while_idle_starts_its_own_clock() -> None:
    idle = Progress().observed(7.0, 0.0, 0, 100.0)
    for second in (200.0, 300.0):
        idle = idle.unanswered(0, second)
    asked = idle.unanswered(1, 400.0)
    assert verdict(asked, 401.0) is Verdict.MOVING
    assert verdict(asked.unanswered(1, 431.0), 431.0) is Verdict.STALLED


def test_an_engine_whose_counter_was_never_read_is_never_judged() -> None:
    progress = Progress()
    for second in range(0, 1000, 50):
        progress = progress.unanswered(5, float(second))
    assert verdict(progress, 1000.0) is Verdict.MOVING


@pytest.mark.parametrize(("steps", "running"), [(None, None), (None, 2.0), (7.0, None)])
def test_answers_without_a_counter_do_not_kill(
    busy: Progress, steps: float | None, running: float | None
) -> None:
    """It serves, and what it counts cannot be read any more: not a number, renamed, larger than is read."""
    for second in range(101, 1000, 5):
        busy = busy.observed(steps, running, 2, float(second))
        assert verdict(busy, float(second)) is Verdict.MOVING
    back = busy.observed(7.0, 2.0, 2, 1000.0)
    assert verdict(back.observed(7.0, 2.0, 2, 1029.0), 1029.0) is Verdict.MOVING, (
        "the clock starts when the counter is back"
    )
    assert verdict(back.observed(7.0, 2.0, 2, 1030.0), 1030.0) is Verdict.STALLED


def test_an_answer_without_a_counter_ends_the_silence() -> None:
    silent = Progress().observed(7, 0, 2, 10.0).observed(7, 0, 2, 20.0).canary(answered=False, now=50.0)
    assert silent.observed(None, None, 2, 60.0) == Progress(7, False, 60.0)


def test_a_counter_that_starts_over_is_a_step(busy: Progress) -> None:
    assert verdict(busy.observed(0.0, 2.0, 2, 220.0), 220.0) is Verdict.MOVING


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_liveness_is_lost_by_failures_in_a_row_alone(results: list[bool], threshold: int) -> None:
    row = ProbeRow()
    for ok in results:
        row = row.seen(ok)
    in_a_row = 0
    for ok in reversed(results):
        if ok:
            break
        in_a_row += 1
    assert row.down(threshold) == (in_a_row >= threshold)


def test_silence_alone_never_kills_and_a_failed_canary_in_it_does() -> None:
    """Requests in flight of which the engine knows nothing: it may be decoding a video, or be dead."""
    silent = Progress().observed(7, 0, 2, 10.0)
    for now in (11.0, 60.0, 600.0):
        silent = silent.observed(7, 0, 2, now)
        assert silent.verdict(now, rotation_s=30, kill_s=120) is Verdict.MOVING
    assert silent.canary_due(600.0, after_s=30)
    suspect = silent.canary(answered=False, now=600.0).observed(7, 0, 2, 601.0)
    assert suspect.verdict(601.0, rotation_s=30, kill_s=120) is Verdict.HUNG
    assert "canary" in suspect.describe(601.0)
    assert suspect.observed(8, 0, 2, 602.0).verdict(602.0, rotation_s=30, kill_s=120) is Verdict.MOVING
    assert suspect.observed(7, 0, 0, 602.0).verdict(602.0, rotation_s=30, kill_s=120) is Verdict.MOVING


def test_a_canary_that_is_answered_starts_the_silence_anew() -> None:
    silent = Progress().observed(7, 0, 2, 10.0).observed(7, 0, 2, 11.0)
    assert silent.canary_due(41.0, after_s=30)
    answered = silent.canary(answered=True, now=41.0)
    assert not answered.canary_due(70.0, after_s=30)
    assert answered.verdict(70.0, rotation_s=30, kill_s=120) is Verdict.MOVING


def test_what_is_said_of_a_hang(busy: Progress) -> None:
    assert busy.describe(130.4) == "hung: requests running, and no engine step for 30 s"
    silent = Progress().observed(7, 0, 2, 10.0).observed(7, 0, 2, 20.0).canary(answered=False, now=50.0)
    assert (
        silent.describe(65.0) == "hung: requests in flight, none running for 45 s, and a canary got no token"
    )


def test_a_canary_is_due_after_the_silence_and_means_nothing_outside_of_one() -> None:
    silent = Progress().observed(7, 0, 2, 10.0).observed(7, 0, 2, 20.0)
    assert [silent.canary_due(at, after_s=30) for at in (49.9, 50.0)] == [False, True]
    assert not Progress().canary_due(999.0, after_s=30)
    assert Progress().canary(answered=False, now=5.0) == Progress()
    suspect = silent.canary(answered=False, now=50.0)
    assert [verdict(suspect, at) for at in (49.9, 50.0, 139.9, 140.0)] == [
        Verdict.MOVING, Verdict.STALLED, Verdict.STALLED, Verdict.HUNG,
    ]  # fmt: skip
    cleared = suspect.canary(answered=True, now=60.0)
    assert (cleared.suspect, cleared.silent_since) == (False, 60.0)
    assert verdict(cleared, 500.0) is Verdict.MOVING


def test_silence_begins_with_a_request_that_the_engine_does_not_know() -> None:
    idle = Progress().observed(7, 0, 0, 10.0).observed(7, 0, 0, 20.0)
    assert idle.silent_since is None
    assert idle.observed(7, 0, 1, 30.0).silent_since == 30.0
    assert idle.observed(8, 0, 1, 30.0).silent_since is None, "a step is a sign of life"
    assert idle.observed(7, 1, 1, 30.0) == Progress(7, True, 30.0)


def test_a_replica_that_was_never_scraped_is_as_young_as_the_last_try() -> None:
    assert Progress().unanswered(3, 50.0) == Progress(moved_at=50.0)
    assert Progress(7.0, True, 10.0).unanswered(1, 50.0) == Progress(7.0, True, 10.0)
    assert Progress(7.0, True, 10.0).unanswered(0, 50.0) == Progress(7.0, False, 50.0)
    assert Progress(7.0, False, 10.0).unanswered(1, 50.0) == Progress(7.0, True, 50.0)


def test_a_row_of_failures() -> None:
    assert ProbeRow(2).seen(False) == ProbeRow(3)
    assert ProbeRow(2).seen(True) == ProbeRow(0)
    assert [ProbeRow(n).down(3) for n in (2, 3, 4)] == [False, True, True]
