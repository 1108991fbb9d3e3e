from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.api.types import LoadView
from gpuserved.core.load import FIGURES, Counters, Growth, LoadWindow, figures, merged, quantile

BOUNDS = (0.01, 0.1, 0.25, 1.0, 5.0, math.inf)
times = st.lists(st.floats(0.0, 20.0), max_size=60)


def buckets(observed: list[float]) -> dict[float, float]:
    return {bound: float(sum(value <= bound for value in observed)) for bound in BOUNDS}


@given(times, times)
def test_percentiles_of_several_are_those_of_all_their_observations(
    one: list[float], other: list[float]
) -> None:
    both = merged([Growth(Counters(ttft=buckets(one))), Growth(Counters(ttft=buckets(other)))])
    for q in (0.5, 0.95):
        assert quantile(both.counted.ttft, q) == quantile(buckets(one + other), q)


def test_an_average_of_percentiles_would_be_wrong() -> None:
    """99 fast requests on one replica and one slow one on another: p95 of all is fast."""
    fast, slow = Growth(Counters(ttft=buckets([0.05] * 99))), Growth(Counters(ttft=buckets([4.0])))
    together = quantile(merged([fast, slow]).counted.ttft, 0.95)
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
    assert merged([Growth(Counters(itl=old)), Growth(Counters(itl=new))]).counted.itl == {
        0.05: 2.0,
        0.1: 5.0,
        0.2: 8.0,
        math.inf: 9.0,
    }


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
    assert growth.per_s.generation_tokens == pytest.approx(50)
    assert growth.span_s == pytest.approx(60)
    median = quantile(growth.counted.ttft, 0.5)
    assert median is not None
    assert median < 0.1, "what was slow more than a minute ago is forgotten"
    assert len(window.samples) <= 32


def test_nothing_is_known_before_the_second_scrape_and_after_another_engine_began() -> None:
    window = LoadWindow().observed(*at(0.0, 500.0, [0.2]))
    assert window.growth == Growth()
    window = window.observed(*at(2.0, 600.0, [0.2, 0.2]))
    assert window.growth.per_s.generation_tokens == pytest.approx(50)
    again = window.observed(*at(4.0, 3.0, []))
    assert again.growth == Growth()


def test_what_an_engine_does_not_count_stays_unknown() -> None:
    window = LoadWindow().observed(0.0, Counters()).observed(2.0, Counters())
    growth = window.growth
    assert growth.per_s.generation_tokens is None
    assert growth.counted.preemptions is None
    assert quantile(growth.counted.ttft, 0.5) is None
    assert merged([growth, Growth(Counters(preemptions=2.0))]).counted.preemptions == 2.0


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.1, 0.5), (0.2, 1.0), (0.4, 1.5), (0.6, 2.0), (0.7, 3.0), (0.8, 4.0), (0.9, 4.0), (1.0, 4.0)],
)
def test_a_percentile_is_linear_within_its_bucket(q: float, expected: float) -> None:
    """Two up to 1 s, four in the second up to 2 s, two up to 4 s, and two above: as histogram_quantile has it."""
    assert quantile({1.0: 2.0, 2.0: 6.0, 4.0: 8.0, math.inf: 10.0}, q) == pytest.approx(expected)


def test_percentiles_of_nothing_and_of_one_bucket() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({1.0: 0.0, 2.0: 4.0, math.inf: 4.0}, 0.5) == pytest.approx(1.5), (
        "empty buckets move the lower end"
    )
    assert quantile({math.inf: 3.0}, 0.5) == 0.0
    assert quantile({1.0: 3.0, 2.0: 2.0, math.inf: 3.0}, 1.0) == pytest.approx(1.0), "counters that disagree"


def test_every_figure_of_a_window() -> None:
    def scrape(n: float) -> Counters:
        return Counters(n, 2 * n, 3 * n, 4 * n, 5 * n, {1.0: 6 * n}, {1.0: 7 * n})

    window = LoadWindow()
    for second in range(31):
        window = window.observed(float(second), scrape(float(second)))
    growth = window.growth
    assert [growth.per_s.prompt_tokens, growth.per_s.generation_tokens] == [
        pytest.approx(1),
        pytest.approx(2),
    ]
    assert [growth.counted.prefix_queries, growth.counted.prefix_hits, growth.counted.preemptions] == [
        90,
        120,
        150,
    ]
    assert (growth.counted.ttft, growth.counted.itl, growth.span_s) == ({1.0: 180}, {1.0: 210}, 30.0)
    both = merged([growth, growth])
    assert [both.per_s.prompt_tokens, both.per_s.generation_tokens] == pytest.approx([2, 4])
    assert (both.counted.prefix_queries, both.counted.prefix_hits, both.counted.preemptions) == (
        180,
        240,
        300,
    )
    assert (both.counted.ttft, both.counted.itl, both.span_s) == ({1.0: 360}, {1.0: 420}, 30.0)
    assert merged([]) == Growth()


def test_rates_look_back_ten_seconds_exactly_where_a_scrape_is_there() -> None:
    window = LoadWindow()
    for second, tokens in [(0.0, 0.0), (5.0, 1000.0), (10.0, 1000.0), (15.0, 1100.0)]:
        window = window.observed(second, Counters(generation_tokens=tokens))
    assert window.growth.per_s.generation_tokens == pytest.approx(10.0), "from the fifth second on"
    assert window.observed(
        15.0, Counters(generation_tokens=1100.0)
    ).growth.per_s.generation_tokens == pytest.approx(10.0)
    twice = (
        LoadWindow()
        .observed(1.0, Counters(generation_tokens=5.0))
        .observed(1.0, Counters(generation_tokens=9.0))
    )
    assert twice.growth.per_s.generation_tokens is None, "two scrapes of the same moment have no rate"


def test_the_window_keeps_one_scrape_at_its_edge() -> None:
    window = LoadWindow()
    for second in (0.0, 30.0, 60.0, 90.0):
        window = window.observed(second, Counters(preemptions=second))
    assert [at for at, _ in window.samples] == [30.0, 60.0, 90.0]
    assert window.growth.counted.preemptions == 60.0
    late = window.observed(500.0, Counters(preemptions=100.0))
    assert [at for at, _ in late.samples] == [90.0, 500.0]


@pytest.mark.parametrize("name", ["prompt_tokens", "generation_tokens", "prefix_queries", "preemptions"])
def test_any_counter_that_goes_back_is_another_engine(name: str) -> None:
    def counted(value: float) -> Counters:
        changed: dict[str, Any] = {name: value}
        return replace(Counters(), **changed)

    window = LoadWindow().observed(0.0, counted(5.0))
    assert len(window.observed(1.0, counted(5.0)).samples) == 2
    assert len(window.observed(1.0, counted(4.0)).samples) == 1
    assert len(window.observed(1.0, Counters()).samples) == 2


def test_a_bucket_that_shrank_counts_as_nothing() -> None:
    window = LoadWindow().observed(0.0, Counters(ttft={1.0: 5.0, 2.0: 5.0}, prefix_hits=9.0))
    growth = window.observed(1.0, Counters(ttft={1.0: 4.0, 2.0: 6.0, 3.0: 7.0}, prefix_hits=8.0)).growth
    assert growth.counted.ttft == {1.0: 0.0, 2.0: 1.0, 3.0: 7.0}
    assert growth.counted.prefix_hits == 0.0


def test_of_replicas_that_began_at_other_times_the_longest_span_counts() -> None:
    assert merged([Growth(span_s=10.0), Growth(span_s=60.0), Growth(span_s=30.0)]).span_s == 60.0


def test_the_scrape_just_before_the_last_may_be_the_one_that_rates_look_back_to() -> None:
    window = LoadWindow()
    for second, tokens in [(0.0, 0.0), (10.0, 1000.0), (20.0, 1100.0)]:
        window = window.observed(second, Counters(generation_tokens=tokens))
    assert window.growth.per_s.generation_tokens == pytest.approx(10.0)


def test_the_smallest_value_is_the_lower_end_of_the_first_bucket_with_any() -> None:
    assert quantile({1.0: 0.0, 2.0: 4.0, math.inf: 4.0}, 0.0) == 1.0


def test_a_bound_that_one_lacks_counts_as_its_next_lower_one() -> None:
    one, other = {0.05: 1.0, 0.1: 3.0, math.inf: 4.0}, {0.2: 5.0, math.inf: 5.0}
    assert merged([Growth(Counters(itl=one)), Growth(Counters(itl=other))]).counted.itl == {
        0.05: 1.0,
        0.1: 3.0,
        0.2: 8.0,
        math.inf: 9.0,
    }


def test_a_figure_that_came_late_has_not_grown_yet() -> None:
    window = (
        LoadWindow().observed(0.0, Counters()).observed(0.5, Counters(preemptions=3.0, prompt_tokens=4.0))
    )
    assert (window.growth.counted.preemptions, window.growth.per_s.prompt_tokens) == (None, None)
    later = window.observed(1.0, Counters()).growth
    assert later.counted.preemptions is None
    quick = LoadWindow().observed(0.0, Counters(prompt_tokens=1.0)).observed(0.5, Counters(prompt_tokens=2.0))
    assert quick.growth.per_s.prompt_tokens == pytest.approx(2.0)


def test_every_figure_is_one_of_the_wire_and_is_made_of_what_grew() -> None:
    assert FIGURES.keys() == set(LoadView.__struct_fields__)
    even = {1.0: 50.0, 2.0: 100.0, math.inf: 100.0}
    growth = Growth(
        Counters(prefix_queries=200.0, prefix_hits=50.0, preemptions=3.0, ttft=even, itl={0.1: 100.0, math.inf: 100.0}),
        Counters(prompt_tokens=7.0, generation_tokens=9.0),
        span_s=30.0,
    )  # fmt: skip
    expected = {
        "prompt_tokens_per_s": 7.0, "generation_tokens_per_s": 9.0, "ttft_p50_s": 1.0, "ttft_p95_s": 1.9, "itl_p50_s": 0.05,
        "itl_p95_s": 0.095, "prefix_hit_pct": 25.0, "preemptions_per_min": 6.0,
    }  # fmt: skip
    assert figures(growth) == pytest.approx(expected)


def test_no_figure_is_known_before_anything_grew_or_of_what_is_not_counted() -> None:
    assert figures(Growth()) is None
    unknown = figures(Growth(span_s=0.5))
    assert unknown is not None
    assert set(unknown.values()) == {None}
    idle = figures(Growth(Counters(prefix_queries=0.0, prefix_hits=0.0), span_s=1.0))
    assert idle is not None
    assert idle["prefix_hit_pct"] is None
