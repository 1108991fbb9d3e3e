"""The KV cache by vLLM's rules, worked out by hand for small models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planner import configs

from gpuserved.core.planner import kv
from gpuserved.core.planner.kv import KvShape, heads_per_gpu, layer_token_bytes
from gpuserved.core.planner.model import LayerKind, Layers, ModelFacts

FULL = Layers(LayerKind.FULL, 4, kv_heads=2, head_dim=8, value_dim=8)
"""64 bytes a token in one layer, in 16 bits."""
STATE = Layers(LayerKind.STATE, 2, state_bytes=5000)
SHAPE = KvShape(in_flight_tokens=32)
BASE = configs.facts(configs.LLAMA_8B)


def model(*layers: Layers) -> ModelFacts:
    return replace(BASE, layers=layers)


@pytest.mark.parametrize(
    ("heads", "size", "each"), [(8, 1, 8), (8, 2, 4), (8, 3, 3), (8, 8, 1), (8, 16, 1), (1, 4, 1), (6, 4, 2)]
)
def test_heads_of_one_gpu(heads: int, size: int, each: int) -> None:
    assert heads_per_gpu(heads, size) == each


def test_bytes_of_a_token_in_a_layer() -> None:
    assert layer_token_bytes(FULL, SHAPE) == 2 * 16 * 2
    assert layer_token_bytes(FULL, KvShape(2)) == 16 * 2
    assert layer_token_bytes(FULL, KvShape(1, 1)) == 32
    assert layer_token_bytes(replace(FULL, value_dim=4), SHAPE) == 2 * 12 * 2
    assert layer_token_bytes(STATE, SHAPE) == 0
    mla = Layers(LayerKind.MLA, 3, 1, 576)
    assert layer_token_bytes(mla, KvShape(8)) == 1152
    assert kv.token_bytes(model(FULL, STATE, mla), SHAPE) == 4 * 64 + 3 * 1152
    assert KvShape() == KvShape(1, 2, 8192, 16)


def test_a_request_takes_whole_blocks() -> None:
    block = 4 * 64 * 16
    assert [kv.request_bytes(model(FULL), SHAPE, n) for n in (1, 16, 17, 160)] == [
        block,
        block,
        2 * block,
        10 * block,
    ]
    assert kv.reserved_bytes(model(FULL), SHAPE) == block
    assert kv.request_bytes(model(FULL, replace(FULL, count=0)), SHAPE, 16) == block, (
        "a kind without layers is none"
    )


def test_a_state_makes_all_blocks_as_large_as_itself() -> None:
    """5000 bytes are 79 tokens of 64: blocks of five times sixteen."""
    both = model(FULL, STATE)
    page = 64 * 80
    # Two layers a group: two groups of full layers, one of states, which takes one block.
    assert kv.request_bytes(both, SHAPE, 1) == 2 * 2 * page + 2 * page
    assert kv.request_bytes(both, SHAPE, 80) == kv.request_bytes(both, SHAPE, 1)
    assert kv.request_bytes(both, SHAPE, 81) == 4 * 2 * page + 2 * page
    alone = model(STATE)
    assert kv.request_bytes(alone, SHAPE, 1) == kv.request_bytes(alone, SHAPE, 10**6) == 2 * 5000
    assert kv.request_bytes(alone, KvShape(3), 1) == 2 * 1667, "divided over the GPUs, rounded up"
    small = model(FULL, replace(STATE, state_bytes=10))
    assert kv.request_bytes(small, SHAPE, 16) == 2 * 2 * 64 * 16 + 2 * 64 * 16


@pytest.mark.parametrize(
    ("full", "other", "layers"), [(4, 4, 8), (4, 5, 10), (2, 3, 6), (4, 6, 12), (20, 4, 24), (21, 4, 28)]
)
def test_kinds_are_grouped_in_equal_numbers_of_layers(full: int, other: int, layers: int) -> None:
    """Less than half as many again: padded to the larger one. Else groups of the smaller one, the last of them padded."""
    two = model(replace(FULL, count=full), replace(FULL, kind=LayerKind.SLIDING, count=other, window=10**6))
    found = kv.request_bytes(two, SHAPE, 16) // (64 * 16)
    low, high = sorted((full, other))
    size = high if high < 1.5 * low else low
    padded = [-(-n // size) * size for n in (full, other)]
    assert sum(padded) == layers
    assert found == padded[0] + 2 * padded[1], "a window may begin in the midst of a block: one block more"


def test_what_fits_in_so_many_bytes() -> None:
    facts, block = model(FULL), 4 * 64 * 16
    assert [kv.tokens(facts, SHAPE, size) for size in (-block, 0, block - 1, block, 10 * block + 5)] == [
        0,
        0,
        0,
        16,
        160,
    ]
    assert kv.tokens(model(STATE), SHAPE, 10**9) == 0
    assert kv.concurrency(facts, SHAPE, 11 * block, 32) == pytest.approx(5.0)
    assert kv.concurrency(facts, SHAPE, block // 2, 32) == 0.0
    assert kv.concurrency(model(), SHAPE, 10, 32) == pytest.approx(10.0), "nothing to keep: no division by it"
    assert kv.longest(facts, SHAPE, 11 * block, 1000) == 160
    assert kv.longest(facts, SHAPE, 11 * block, 160) == 160
    assert kv.longest(facts, SHAPE, 11 * block, 150) == 150
    assert kv.longest(facts, SHAPE, 2 * block, 1000) == 16
    assert kv.longest(facts, SHAPE, 2 * block - 1, 1000) == 0
    assert kv.longest(facts, SHAPE, 2 * block, 16) == 16
    assert kv.longest(facts, SHAPE, 2 * block, 17) == 16


@given(st.integers(0, 10**7), st.integers(1, 5000), st.sampled_from([1, 2, 4]))
def test_the_longest_fits_and_one_block_more_does_not(room: int, limit: int, size: int) -> None:
    facts, shape = (
        model(FULL, replace(FULL, kind=LayerKind.SLIDING, window=100)),
        KvShape(size, in_flight_tokens=64),
    )
    found = kv.longest(facts, shape, room, limit)
    left = room - kv.reserved_bytes(facts, shape)
    assert 0 <= found <= limit
    if found:
        assert kv.request_bytes(facts, shape, found) <= left
    if found < limit:
        assert kv.request_bytes(facts, shape, min(limit, found + 16)) > left


def test_three_kinds_of_which_one_has_half_as_many_again_are_in_groups_of_the_smallest() -> None:
    kinds = (
        FULL,
        replace(FULL, kind=LayerKind.MLA, count=6, kv_heads=1, head_dim=32),
        Layers(LayerKind.STATE, 6, state_bytes=64),
    )
    assert kv.request_bytes(model(*kinds), SHAPE, 16) == (4 + 8 + 8) * 64 * 16
