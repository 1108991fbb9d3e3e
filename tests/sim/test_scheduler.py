"""The engine's arithmetic: tokenizer, blocks, batching. Pure, so checked with generated input."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.engines.sim.scheduler import BLOCK_TOKENS, BlockPool, EngineRequest, Scheduler, block_hashes
from gpuserved.engines.sim.tokens import decode, encode


def request(name: str, tokens: int, max_tokens: int = 4, first: int = 100) -> EngineRequest:
    return EngineRequest(name, list(range(first, first + tokens)), max_tokens, ignore_eos=True)


@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    assert decode(encode(text)) == text.encode(errors="replace").decode()


@given(st.lists(st.integers(0, 50), max_size=100), st.lists(st.integers(0, 50), max_size=100))
def test_block_hashes_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int]) -> None:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    pairs = list(zip(block_hashes(left), block_hashes(right), strict=False))
    agreed = [a == b for a, b in pairs]
    assert agreed == [at < same // BLOCK_TOKENS for at in range(len(pairs))]


@given(
    st.lists(st.tuples(st.integers(1, 120), st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(12, 40),
    st.integers(1, 6),
    st.integers(16, 96),
)
def test_all_requests_finish_with_exactly_their_tokens_and_every_block_comes_back(
    asked: list[tuple[int, int, int]], blocks: int, seqs: int, batch: int
) -> None:
    scheduler = Scheduler(blocks * BLOCK_TOKENS, seqs, batch)
    requests = [request(str(at), size, most, first) for at, (size, most, first) in enumerate(asked)]
    for item in requests:
        scheduler.add(item)
    for _ in range(20_000):
        if not scheduler.busy:
            break
        step = scheduler.step()
        assert len(scheduler.running) <= seqs
        assert step.prefill_tokens + step.decode_tokens <= max(batch, seqs)
    assert [len(item.output) for item in requests] == [item.max_tokens for item in requests]
    assert scheduler.pool.free == blocks


def test_a_second_identical_prompt_computes_only_its_last_block() -> None:
    scheduler = Scheduler(1024, 8, 2048)
    scheduler.add(request("a", 64))
    assert scheduler.step().prefill_tokens == 64
    scheduler.add(request("b", 64))
    step = scheduler.step()
    assert (step.cached_by_request, step.prefill_tokens) == ({"b": 48}, 16)


def test_the_oldest_cached_prefix_is_forgotten_first() -> None:
    scheduler = Scheduler(8 * BLOCK_TOKENS, 8, 2048)
    for name, first in (("old", 100), ("new", 1000), ("third", 2000)):
        scheduler.add(request(name, 48, max_tokens=1, first=first))
        scheduler.step()
    cached = {
        name: len(scheduler.pool.cached(block_hashes(list(range(first, first + 48)))))
        for name, first in (("old", 100), ("new", 1000), ("third", 2000))
    }
    assert cached["third"] == cached["new"] == 3
    assert cached["old"] < 3


def test_the_next_turn_finds_the_answer_of_the_last_one_in_the_cache() -> None:
    scheduler = Scheduler(1024, 8, 2048)
    turn = request("a", 32, max_tokens=33)
    scheduler.add(turn)
    while scheduler.busy:
        scheduler.step()
    follow = EngineRequest("b", [*turn.prompt, *turn.output, 7, 8, 9], 1)
    scheduler.add(follow)
    assert scheduler.step().cached_by_request == {"b": 64}


def test_without_blocks_the_youngest_is_preempted_and_still_finishes() -> None:
    scheduler = Scheduler(6 * BLOCK_TOKENS, 8, 2048)
    first, second = request("a", 40, max_tokens=40), request("b", 40, max_tokens=20, first=500)
    scheduler.add(first)
    scheduler.add(second)
    preempted = 0
    while scheduler.busy:
        preempted += scheduler.step().preempted
    assert preempted > 0
    assert (len(first.output), len(second.output)) == (40, 20)


def test_a_block_in_use_is_never_handed_out() -> None:
    pool = BlockPool(4 * BLOCK_TOKENS)
    held = pool.allocate(3)
    assert held is not None
    pool.hold(held[:1])
    pool.release(held)
    assert pool.free == 3
    fresh = pool.allocate(3)
    assert fresh is not None
    assert held[0] not in fresh
    assert pool.allocate(1) is None
