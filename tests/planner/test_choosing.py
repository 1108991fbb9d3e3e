"""Which size is chosen, and what the answer holds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import Gpu, Lease, NoFit, Placements
from gpuserved.core.planner.decide import place
from gpuserved.core.planner.model import ModelFacts

SMALL = configs.facts(configs.QWEN3_06B)
LLAMA = configs.facts(configs.LLAMA_8B)
DEEPSEEK = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)


def planned(
    gpus: list[Gpu], facts: ModelFacts = LLAMA, leases: tuple[Lease, ...] = (), **profile: Any
) -> Placements:
    keep = profile.pop("keep", None)
    answer = place(configs.profile(**profile), gpus, leases, facts=facts, keep=keep)
    assert isinstance(answer, Placements), answer
    return answer


def groups(answer: Placements) -> list[list[int]]:
    return [[gpu.index for gpu in one.gpus] for one in answer.replicas]


def test_length_counts_first_only_where_it_was_asked_for() -> None:
    """One 24 GB card holds a request of some 36,000 tokens, two of the model's 131,072."""
    cards = configs.host(2, 24)
    assert groups(planned(cards, max_model_len=None)) == [[0], [1]]
    assert groups(planned(cards, max_model_len=None, max_model_len_auto=True)) == [[0, 1]]
    assert groups(planned(cards, max_model_len=8192)) == [[0], [1]]
    longest = planned(cards, max_model_len=None, max_model_len_auto=True, target_concurrency=1)
    assert longest.replicas[0].max_model_len == 131_072


def test_the_smallest_size_that_carries_the_load() -> None:
    cards = configs.host(4, 24)
    assert [len(group) for group in groups(planned(cards, target_concurrency=1))] == [1, 1, 1, 1]
    wide = planned(cards, target_concurrency=64)
    assert [len(group) for group in groups(wide)] in ([2, 2], [4])
    assert wide.replicas[0].concurrency is not None
    few = planned(cards, target_concurrency=1).replicas[0].concurrency
    assert few is not None
    assert wide.replicas[0].concurrency > 3 * few


@pytest.mark.parametrize("replicas", [None, 1, 2])
def test_where_nothing_is_free_the_owners_are_named(replicas: int | None) -> None:
    leases = [Lease("GPU-0", "a-0"), Lease("GPU-1", "b-0")]
    no = place(configs.profile(replicas=replicas), configs.host(2), leases, facts=SMALL)
    assert isinstance(no, NoFit)
    assert no.code == "gpu_overlap"
    assert "1 GPUs are needed and 0 are free; held: GPU 0 by a-0; GPU 1 by b-0" in no.message
    none = place(configs.profile(replicas=0), configs.host(2), leases, facts=SMALL)
    assert none == Placements(())


def test_replicas_are_numbered_by_their_gpus_around_those_that_stay() -> None:
    answer = planned(
        configs.host(6), keep={"p-1": ["GPU-0", "GPU-1"], "q-0": ["GPU-2"]}, tensor_parallel_size=2
    )
    assert [(one.replica, [gpu.index for gpu in one.gpus]) for one in answer.replicas] == [
        ("p-0", [2, 3]), ("p-1", [0, 1]), ("p-2", [4, 5]),
    ]  # fmt: skip


def test_an_answer_holds_what_was_computed() -> None:
    answer = planned(configs.host(8, 141), DEEPSEEK, data_parallel="internal", tensor_parallel_size=1)
    (one,) = answer.replicas
    assert (one.tensor_parallel_size, one.data_parallel_size, one.max_model_len) == (1, 8, 8192)
    assert one.card is not None
    assert one.utilization == one.card.utilization
    assert one.concurrency == pytest.approx(8 * one.card.concurrency(DEEPSEEK, 8192))


def test_levers_are_shown_where_something_is_missing() -> None:
    card = configs.host(1, 24)
    assert planned(card).levers == ()
    assert planned(card, target_concurrency=1).levers == ()
    for missing in ({"target_concurrency": 500}, {"max_model_len": None}):
        levers = planned(card, **missing).levers
        tokens = [one.kv_cache_tokens for one in levers]
        assert tokens == sorted(tokens, reverse=True)
        assert 'kv_cache_dtype = "fp8"' in [one.change for one in levers]


def test_of_a_size_that_is_set_no_other_is_looked_at() -> None:
    assert groups(planned(configs.host(4), tensor_parallel_size=4)) == [[0, 1, 2, 3]]
    no = place(configs.profile(tensor_parallel_size=3), configs.host(8), facts=LLAMA)
    assert isinstance(no, NoFit)
    assert (no.code, no.hint) == ("heads_not_divisible", "tensor_parallel_size = 2, or 4")
    long = place(configs.profile(max_model_len=131_073), configs.host(8), facts=LLAMA)
    assert isinstance(long, NoFit)
    assert "1 tokens more than the model's" in long.message
