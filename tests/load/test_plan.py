"""The load of `gpuserve bench`: decided beforehand, the same for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.bench.plan import Lengths, Shape, plan

SHAPE = Shape(
    rate_per_s=10, requests=50, prompt=Lengths(40, 80), output=Lengths(5, 9), prefix_tokens=30, prefixes=3
)


def words(body: bytes) -> list[str]:
    text: str = json.loads(body)["messages"][0]["content"]
    return text.split(" ")


@given(st.integers(0, 1000), st.floats(0.1, 1000), st.integers(1, 200))
def test_arrivals_are_in_order_repeatable_and_as_many_as_asked(seed: int, rate: float, count: int) -> None:
    shape = Shape(rate_per_s=rate, requests=count, seed=seed, prompt=Lengths(1, 3))
    due = [one.at_s for one in plan(shape, "m")]
    assert due == sorted(due)
    assert len(due) == count
    assert due[0] == 0
    assert plan(shape, "m") == plan(shape, "m")


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = [one.at_s for one in plan(Shape(rate_per_s=50, requests=20_000, prompt=Lengths(1, 1)), "m")]
    gaps = [later - at for at, later in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.1), "exponential gaps: the deviation is the mean"


def test_fixed_arrivals_are_at_equal_distances() -> None:
    due = [one.at_s for one in plan(replace(SHAPE, poisson=False), "m")]
    assert due == pytest.approx([n / 10 for n in range(50)])


def test_prompts_have_their_lengths_and_share_only_their_prefix() -> None:
    bodies = [one.body for one in plan(SHAPE, "m")]
    prompts = [words(body) for body in bodies]
    assert all(40 <= len(prompt) <= 80 for prompt in prompts)
    assert all(5 <= json.loads(body)["max_tokens"] <= 9 for body in bodies)
    assert len({tuple(prompt[:30]) for prompt in prompts}) == 3
    assert len({tuple(prompt[30:40]) for prompt in prompts}) == len(prompts)
    assert plan(replace(SHAPE, seed=2), "m")[0].body != bodies[0]
