from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.load import Counters, Growth, LoadWindow, merged, quantile

BOUNDS = (0.01, 0.1, 0.25, 1.0, 5.0, math.inf)
times = st.lists(st.floats(0.0, 20.0), max_size=60)


def buckets(observed: list[float]) -> dict[float, float]:
    return {bound: float(sum(value <= bound for value in observed)) for bound in BOUNDS}


@given(times, times)
def test_percentiles_of_several_are_those_of_all_their_observations(
    one: list[float], other: list[float]
) -> None:
    both = merged([Growth(ttft=buckets(one)), Growth(ttft=buckets(other))])
    for q in (0.5, 0.95):
        assert quantile(both.ttft, q) == quantile(buckets(one + other), q)


def test_an_average_of_percentiles_would_be_wrong() -> None:
    """99 fast requests on one replica and one slow one on another: p95 of all is fast."""
    fast, slow = Growth(ttft=buckets([0.05] * 99)), Growth(ttft=buckets([4.0]))
    together = quantile(merged([fast, slow]).ttft, 0.95)
    assert together is not None
    assert together < 0.1


@given(times.filter(bool), st.floats(0.01, 1.0))
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(observed: list[float], q: float) -> None:
    exact = sorted(observed)[max(0, math.ceil(q * len(observed)) - 1)]
    found = quantile(buckets(observed), q)
    assert found is not None
    upper = next(bound for bound in BOUNDS if exact <= bound)
    lower = max((bound for bound in BOUNDS if bound < upper), default=0.0)
    assert lower <= found <= (upper if upper != math.inf else 5.0)


@given(times, times)
def test_a_percentile_grows_with_its_share(one: list[float], other: list[float]) -> None:
    found = [quantile(buckets(one + other), q) for q in (0.1, 0.5, 0.9, 0.99)]
    known = [value for value in found if value is not None]
    assert known == sorted(known)
    assert len(known) == (4 if one + other else 0)


def test_histograms_of_two_releases_with_other_bounds_can_be_added() -> None:
    old, new = {0.1: 3.0, math.inf: 4.0}, {0.05: 2.0, 0.2: 5.0, math.inf: 5.0}
    assert merged([Growth(itl=old), Growth(itl=new)]).itl == {0.05: 2.0, 0.1: 5.0, 0.2: 8.0, math.inf: 9.0}


def at(second: float, tokens: float, ttft: list[float]) -> tuple[float, Counters]:
    return second, Counters(generation_tokens=tokens, preemptions=0.0, ttft=buckets(ttft))


def test_rates_are_of_ten_seconds_and_percentiles_of_a_minute() -> None:
    window = LoadWindow()
    seen: list[float] = []
    for second in range(0, 121, 2):
        seen.append(3.0 if second < 60 else 0.05)
        window = window.observed(
            *at(float(second), second * 10.0 if second < 100 else 1000 + (second - 100) * 50, seen)
        )
    growth = window.growth
    assert growth.generation_tokens_per_s == pytest.approx(50)
    assert growth.span_s == pytest.approx(60)
    median = quantile(growth.ttft, 0.5)
    assert median is not None
    assert median < 0.1, "what was slow more than a minute ago is forgotten"
    assert len(window.samples) <= 32


def test_nothing_is_known_before_the_second_scrape_and_after_another_engine_began() -> None:
    window = LoadWindow().observed(*at(0.0, 500.0, [0.2]))
    assert window.growth == Growth()
    window = window.observed(*at(2.0, 600.0, [0.2, 0.2]))
    assert window.growth.generation_tokens_per_s == pytest.approx(50)
    again = window.observed(*at(4.0, 3.0, []))
    assert again.growth == Growth()


def test_what_an_engine_does_not_count_stays_unknown() -> None:
    window = LoadWindow().observed(0.0, Counters()).observed(2.0, Counters())
    growth = window.growth
    assert growth.generation_tokens_per_s is None
    assert growth.preemptions is None
    assert quantile(growth.ttft, 0.5) is None
    assert merged([growth, Growth(preemptions=2.0)]).preemptions == 2.0
