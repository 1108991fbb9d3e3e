"""What share of a card vLLM may be given, so that it starts: alone, beside processes of others, and beside other replicas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planner import configs

from gpuserved.core.placement import Gpu, Lease, NoFit, Placements
from gpuserved.core.planner.decide import place
from gpuserved.core.planner.room import room
from gpuserved.core.planner.utilization import (
    ASSUMED_VOCABULARY,
    CONTEXT_BYTES,
    GRAPH_BYTES,
    GRAPH_SMALL_BYTES,
    LATE_SAMPLER_BYTES,
    PARALLEL_BYTES,
    Runs,
    asked_utilization,
    chosen_utilization,
    late_bytes,
    too_high,
    utilization_cap,
    utilization_limit,
    wanted_utilization,
)
from gpuserved.core.profile import EngineName, Profile

GIB = configs.GIB
H100 = Gpu(
    0,
    "GPU-0",
    "NVIDIA H100 80GB HBM3",
    85_520_809_984,
    memory_used_bytes=503_316_480,
    memory_reserved_bytes=503_316_480,
)
VISIBLE = 85_520_809_984 - 503_316_480
LLAMA = configs.facts(configs.LLAMA_8B)
RUNS = Runs(LLAMA, "0.26.0")
MEASURED_WITH = {39432: 0.44, 39186: 0.47}
"""MiB that NVML showed of an engine, and the utilisation it had."""


def gpu(**more: Any) -> Gpu:
    given: dict[str, Any] = {
        "memory_total_bytes": 101 * GIB,
        "memory_reserved_bytes": GIB,
        "memory_used_bytes": GIB,
    }
    return Gpu(0, "GPU-0", "H100", **(given | more))


def obstacles(one: Gpu, **profile: Any) -> list[str]:
    return [why for _, why in room(configs.profile(**profile), [one], []).taken]


def starts(utilization: float, used_by_others: int, size: int) -> bool:
    """VLLM's own look (`request_memory`), when its context and NCCL's buffers are there."""
    free = VISIBLE - used_by_others - CONTEXT_BYTES - (PARALLEL_BYTES if size > 1 else 0)
    return free >= utilization * VISIBLE


def test_the_share_that_vllm_finds_free() -> None:
    assert utilization_cap(gpu(), 1) == 0.99, "its own context is there when it looks"
    assert utilization_cap(gpu(memory_used_bytes=31 * GIB), 1) == 0.69
    assert utilization_cap(gpu(memory_used_bytes=31 * GIB - CONTEXT_BYTES), 1) == 0.7
    assert utilization_cap(gpu(memory_used_bytes=31 * GIB - CONTEXT_BYTES + 99), 1) == 0.69, "rounded down"
    assert utilization_cap(gpu(memory_used_bytes=31 * GIB - CONTEXT_BYTES), 2) == 0.69, (
        "NCCL's buffers as well"
    )
    for nothing in (None, 0, GIB):
        assert utilization_cap(gpu(memory_used_bytes=nothing), 1) == 0.99
    assert utilization_cap(gpu(memory_used_bytes=101 * GIB), 1) == 0.0
    for unknown in (None, 0):
        assert utilization_cap(gpu(memory_total_bytes=unknown), 1) == 1.0
    untold = gpu(memory_reserved_bytes=None, memory_used_bytes=0)
    assert utilization_cap(untold, 1) == 0.99, "the driver keeps something of every card"


@given(used=st.integers(0, 85_520_809_984), size=st.integers(1, 8))
def test_vllm_starts_with_it_and_hardly_with_more(used: int, size: int) -> None:
    there = Gpu(
        0,
        "GPU-0",
        H100.name,
        H100.memory_total_bytes,
        memory_used_bytes=used,
        memory_reserved_bytes=503_316_480,
    )
    cap = utilization_cap(there, size)
    others = max(0, used - 503_316_480)
    assert cap == 0 or starts(cap, others, size)
    assert not starts(cap + 0.01 + 1e-6, others, size)


def test_what_others_leave_is_taken_and_what_is_asked_for_must_be_there() -> None:
    beside = gpu(memory_used_bytes=31 * GIB)
    assert obstacles(beside, flags={"gpu_memory_utilization": 0.69}) == []
    assert obstacles(beside, flags={"gpu_memory_utilization": 0.7}) == [
        "by processes that are not ours (31744 MiB)"
    ]
    assert obstacles(beside, gpu_share=0.8) == ["by processes that are not ours (31744 MiB)"]
    assert obstacles(beside, gpu_share=0.5) == []
    assert obstacles(beside) == [], "the planner takes what is left"


def test_the_share_that_is_asked_for() -> None:
    both = configs.profile(flags={"gpu_memory_utilization": 0.4}, gpu_share=0.5)
    assert (asked_utilization(both), wanted_utilization(both, gpu(), 1)) == (0.4, 0.4)
    assert asked_utilization(configs.profile(flags={"gpu_memory_utilization": 1})) == 1.0
    words = configs.profile(flags={"gpu_memory_utilization": "0.8"})
    assert (asked_utilization(words), wanted_utilization(words, gpu(), 1)) == (None, None)
    sim = configs.profile(engine=EngineName.SIM, gpu_share=0.5, flags={"gpu_memory_utilization": 0.5})
    assert (asked_utilization(sim), wanted_utilization(sim, gpu(), 1)) == (None, None)
    assert chosen_utilization(configs.profile(), gpu(), 1) is None


def test_beside_others_the_default_is_lowered_as_soon_as_graphs_and_sampler_would_not_fit() -> None:
    alone = configs.profile()
    late = late_bytes(alone, gpu(), RUNS) + CONTEXT_BYTES
    assert chosen_utilization(alone, gpu(memory_used_bytes=9 * GIB - late), 1, RUNS) is None, (
        "0.92 is the default"
    )
    assert chosen_utilization(alone, gpu(memory_used_bytes=9 * GIB - late + 99), 1, RUNS) == 0.91
    assert chosen_utilization(alone, gpu(memory_used_bytes=9 * GIB - late), 2, RUNS) == 0.91
    huge = Runs(replace(LLAMA, vocab_size=4 * LLAMA.vocab_size), "0.26.0")
    assert chosen_utilization(alone, gpu(), 1, huge) is None, "alone on its card it keeps vLLM's default"
    assert chosen_utilization(alone, gpu(memory_used_bytes=2 * GIB), 1, huge) == 0.86


def test_a_share_of_a_card_holds_what_vllm_has_beside_its_budget() -> None:
    half = configs.profile(gpu_share=0.5)
    assert wanted_utilization(half, gpu(), 1, RUNS) == 0.45, "less 4.5 GiB of 100"
    assert wanted_utilization(half, gpu(), 2, RUNS) == 0.45
    eager = configs.profile(gpu_share=0.5, flags={"enforce_eager": True})
    assert wanted_utilization(eager, gpu(), 1, RUNS) == 0.46
    assert wanted_utilization(configs.profile(gpu_share=1.0), gpu(), 1) is None, "all of it is no share"
    assert wanted_utilization(configs.profile(gpu_share=0.01), gpu(), 1) == 0.0
    assert wanted_utilization(half, gpu(memory_total_bytes=None), 1) == 0.5
    assert chosen_utilization(half, gpu(memory_used_bytes=9 * GIB), 1, RUNS) == 0.45


def test_what_vllm_takes_after_it_has_made_its_cache() -> None:
    many, few = configs.profile(), configs.profile(flags={"max_num_seqs": 256})
    sampler = LATE_SAMPLER_BYTES * 1024 * LLAMA.vocab_size
    assert late_bytes(many, H100, RUNS) == GRAPH_BYTES + sampler
    assert late_bytes(few, H100, RUNS) == GRAPH_SMALL_BYTES + sampler // 4
    assert late_bytes(configs.profile(flags={"enforce_eager": True}), H100, RUNS) == sampler
    assert late_bytes(many, Gpu(0, "GPU-0", "NVIDIA L4", 24 * GIB), RUNS) == GRAPH_SMALL_BYTES + sampler // 4
    assert late_bytes(many, H100, Runs(LLAMA, "0.25.1")) == GRAPH_BYTES, (
        "the first runner profiles its sampler"
    )
    assert late_bytes(many, H100, Runs(LLAMA)) == GRAPH_BYTES + sampler, "no less than the latest takes"
    unknown = LATE_SAMPLER_BYTES * 1024 * ASSUMED_VOCABULARY
    assert late_bytes(many, H100, Runs()) == GRAPH_BYTES + unknown


@pytest.mark.parametrize(("flags", "held_mib"), [({}, 39432), ({"max_num_seqs": 256}, 39186)])
def test_a_half_holds_what_was_measured_in_it(flags: dict[str, Any], held_mib: int) -> None:
    """Two engines on one H100, a model of one billion parameters, 0.26.0: what NVML shows of each beyond its utilisation."""
    profile = configs.profile(gpu_share=0.5, flags=flags)
    utilization = wanted_utilization(profile, H100, 1, RUNS)
    assert utilization is not None
    beyond = held_mib * 1024**2 - int(MEASURED_WITH[held_mib] * VISIBLE)
    assert beyond <= CONTEXT_BYTES + late_bytes(profile, H100, RUNS)
    assert int(utilization * VISIBLE) + beyond <= VISIBLE // 2


@given(
    parts=st.lists(st.integers(1, 90), min_size=2, max_size=6).filter(lambda parts: sum(parts) <= 100),
    eager=st.booleans(),
    size=st.integers(1, 2),
)
def test_every_replica_of_a_full_card_starts_whoever_comes_last(
    parts: list[int], size: int, *, eager: bool
) -> None:
    flags = {"enforce_eager": True} if eager else {}
    profiles = [configs.profile(gpu_share=part / 100, flags=flags) for part in parts]
    given = [wanted_utilization(profile, H100, size, RUNS) or 0.0 for profile in profiles]
    before = CONTEXT_BYTES + (PARALLEL_BYTES if size > 1 else 0)
    late = late_bytes(profiles[0], H100, RUNS)
    for last, mine in enumerate(given):
        others = sum(
            int(share * VISIBLE) + before + late for n, share in enumerate(given) if n != last and share
        )
        assert not mine or starts(mine, others + late, size)


def test_two_halves_of_a_card_are_planned_with_what_fits_into_a_half() -> None:
    half = configs.profile(gpu_share=0.5, max_model_len=8192)
    first = place(half, [H100], facts=LLAMA, version="0.26.0")
    second = place(half, [H100], [Lease("GPU-0", "a-0", 0.5)], facts=LLAMA, version="0.26.0")
    for answer in (first, second):
        assert isinstance(answer, Placements)
        assert answer.replicas[0].utilization == 0.44


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (
            configs.profile(flags={"gpu_memory_utilization": 1.0}),
            "gpu_memory_utilization = 1 is more than the 0.99 that can be had: the CUDA context needs some of the card",
        ),
        (
            configs.profile(flags={"gpu_memory_utilization": 0.5}, gpu_share=0.5),
            "gpu_memory_utilization = 0.5 is more than the {limit:g} that can be had: gpu_share = 0.5 holds what vLLM does not count",
        ),
    ],
)
def test_more_than_can_be_had_is_refused_before_a_gpu_is_touched(profile: Profile, words: str) -> None:
    for facts in (LLAMA, None):
        limit = utilization_limit(profile, H100, 1, Runs(facts))
        answer = place(profile, [H100], facts=facts)
        assert isinstance(answer, NoFit)
        assert (answer.code, answer.hint) == (
            "does_not_fit", f"gpu_memory_utilization = {limit:g}, or leave it out",
        )  # fmt: skip
        assert words.format(limit=limit) in answer.message


def test_a_card_that_cannot_give_as_much_is_left_to_others() -> None:
    small = Gpu(1, "GPU-1", "NVIDIA L4", 24 * GIB, memory_used_bytes=0)
    profile = configs.profile(flags={"gpu_memory_utilization": 0.99}, replicas=None)
    answer = place(profile, [H100, small], facts=LLAMA)
    assert isinstance(answer, Placements)
    assert [[gpu.index for gpu in one.gpus] for one in answer.replicas] == [[0]]
    assert obstacles(small, flags={"gpu_memory_utilization": 0.99}) == [
        "by its own CUDA context: gpu_memory_utilization can be 0.97 there at most"
    ]


def test_nothing_can_be_had_of_a_sliver() -> None:
    sliver = configs.profile(flags={"gpu_memory_utilization": 0.01}, gpu_share=0.01)
    refused = too_high(sliver, [H100])
    assert refused is not None
    assert refused.hint == "a larger gpu_share"


def test_what_nobody_knows_of_a_card_is_not_refused() -> None:
    full = configs.profile(flags={"gpu_memory_utilization": 1.0})
    assert too_high(full, []) is None
    assert too_high(full, [gpu(memory_total_bytes=None)]) is None
