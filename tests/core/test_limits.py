from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.limits import DAY_S, MINUTE_S, Bucket

steps = st.lists(st.tuples(st.floats(0.0, 200.0), st.integers(1, 5)), max_size=60)


@given(st.integers(1, 50), steps)
def test_who_waits_as_told_never_uses_more_than_a_window_and_one_step_above(
    limit: int, arrivals: list[tuple[float, int]]
) -> None:
    now, used = 0.0, 0
    bucket = Bucket(limit, MINUTE_S, now)
    for passed_s, units in arrivals:
        now += passed_s
        if bucket.wait_s(now) == 0.0:
            bucket.take(units, now)
            used += units
        assert used <= limit + limit * now / MINUTE_S + 5


@given(st.integers(1, 10_000), st.integers(1, 100_000))
def test_after_the_wait_it_told_of_one_unit_is_there(limit: int, used: int) -> None:
    bucket = Bucket(limit, DAY_S, 0.0)
    bucket.take(used, 0.0)
    wait_s = bucket.wait_s(0.0)
    assert (wait_s == 0.0) == (used <= limit - 1)
    assert bucket.wait_s(wait_s + 1e-3) == pytest.approx(0.0, abs=1e-3)


def test_a_new_limit_keeps_what_was_used() -> None:
    bucket = Bucket(10, MINUTE_S, 0.0)
    bucket.take(10, 0.0)
    bucket.resize(20, 0.0)
    assert bucket.wait_s(0.0) == 0.0
    bucket.take(10, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(3.0)
    bucket.resize(10, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(66.0)


def test_a_bucket_refills_evenly_and_never_above_its_limit() -> None:
    bucket = Bucket(60, MINUTE_S, 100.0)
    bucket.take(60, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(1.0)
    assert bucket.wait_s(100.5) == pytest.approx(0.5)
    assert bucket.wait_s(101.0) == 0.0
    bucket.take(61, 1000.0)
    assert bucket.wait_s(1000.0) == pytest.approx(2.0), "an hour of rest is worth one window"
    bucket.wait_s(990.0)
    assert bucket.wait_s(1001.0) == pytest.approx(1.0), "a clock that went back adds nothing"


def test_a_new_limit_counts_from_now_on() -> None:
    bucket = Bucket(60, MINUTE_S, 0.0)
    bucket.take(60, 0.0)
    bucket.resize(120, 10.0)  # ten units came at the old pace, and sixty with the new limit
    bucket.take(70, 10.0)
    assert bucket.wait_s(10.0) == pytest.approx(0.5)
    bucket.resize(6, 10.0)
    assert bucket.limit == 6
    full = Bucket(10, DAY_S, 0.0)
    full.resize(4, 0.0)
    full.take(4, 0.0)
    assert full.wait_s(0.0) == pytest.approx(DAY_S / 4)


@given(st.integers(1, 10_000), st.integers(1, 100_000))
def test_who_waits_exactly_as_long_as_told_is_let_in(limit: int, used: int) -> None:
    bucket = Bucket(limit, MINUTE_S, 0.0)
    bucket.take(used, 0.0)
    assert bucket.wait_s(bucket.wait_s(0.0)) == 0.0, "the last digit of a float is no reason to wait"
