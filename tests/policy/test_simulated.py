"""The policies on a model of four replicas; docs/performance.md has the table over more seeds (`python -m tests.policy.table`)."""

from __future__ import annotations

from functools import cache

import pytest
from tests.policy.box import Box, Result
from tests.policy.table import SHAPES

from gpuserved.core.policy.make import make_policy


@cache
def run(
    policy: str, shape: str, routers: int, believed_tokens: int | None = None, shared: bool = True
) -> Result:
    box = Box(lambda: make_policy(policy), routers=routers, believed_tokens=believed_tokens, shared=shared)
    return box.run(SHAPES[shape](1))


@pytest.mark.parametrize("routers", [1, 4])
def test_prefix_finds_conversations_again_and_keeps_the_balance(routers: int) -> None:
    # In-flight counts are shared, so that the plain policies do the same with one router and with four.
    plain, tied = run("least_inflight", "chat", 1), run("prefix", "chat", routers)
    assert tied.hit_rate >= 0.88
    assert tied.ttft_ms(0.99) <= 0.45 * plain.ttft_ms(0.99)
    assert tied.imbalance <= 1.35
    assert plain.hit_rate < run("session", "chat", 1).hit_rate < tied.hit_rate


@pytest.mark.parametrize("routers", [1, 4])
def test_prefix_serves_agents_with_long_prompts_and_tools(routers: int) -> None:
    plain, tied = run("least_inflight", "agents", 1), run("prefix", "agents", routers)
    assert tied.hit_rate >= 0.93
    assert plain.hit_rate < 0.85
    assert tied.ttft_ms(0.5) <= 0.4 * plain.ttft_ms(0.5)
    assert tied.ttft_ms(0.99) <= 0.7 * plain.ttft_ms(0.99)


@pytest.mark.parametrize("routers", [1, 4])
def test_prefix_loses_nothing_where_nothing_is_shared(routers: int) -> None:
    plain, tied = run("least_inflight", "strangers", 1), run("prefix", "strangers", routers)
    assert tied.ttft_ms(0.5) <= 1.03 * plain.ttft_ms(0.5)
    assert tied.ttft_ms(0.99) <= 1.03 * plain.ttft_ms(0.99)
    assert tied.imbalance <= plain.imbalance + 0.05


def test_routers_that_do_not_tell_each_other_lose_the_conversations() -> None:
    assert run("prefix", "chat", 4, shared=False).hit_rate < 0.75
    assert run("prefix", "chat", 4).hit_rate >= 0.88


def test_counters_correct_a_mirror_that_believes_in_five_times_the_cache() -> None:
    assert run("prefix", "chat", 1, believed_tokens=300_000).hit_rate >= 0.85
