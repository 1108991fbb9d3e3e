"""What must hold for every plan, whatever the model, the host and the profile."""

from __future__ import annotations

import time
from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner import configs

from gpuserved.core.placement import Gpu, Lease, NoFit, Placements
from gpuserved.core.planner import architecture
from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.decide import place
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.profile import Profile

MODELS = [
    configs.facts(configs.LLAMA_8B), configs.facts(configs.LLAMA_70B), configs.facts(configs.QWEN3_30B_A3B),
    configs.facts(configs.QWEN3_06B), configs.facts(configs.DEEPSEEK_V3, 688_586_727_753),
    configs.facts(configs.GPT_OSS_20B, 13_761_264_768), configs.facts(configs.MISTRAL_7B),
]  # fmt: skip
models = st.sampled_from(MODELS)
cards = st.sampled_from([24, 48, 80, 141])
lengths = st.integers(1, 200_000)
sizes = st.none() | st.sampled_from([1, 2, 3, 4, 8])
versions = st.sampled_from([None, "0.26.0", "0.32.0"])
utilizations = st.none() | st.sampled_from([0.5, 0.8, 0.9, 0.95])


def asked(length: int | None, size: int | None, utilization: float | None, **more: Any) -> Profile:
    flags = {} if utilization is None else {"gpu_memory_utilization": utilization}
    return configs.profile(max_model_len=length, tensor_parallel_size=size, flags=flags, **more)


def fits(profile: Profile, gpus: list[Gpu], facts: ModelFacts, version: str | None) -> bool:
    return isinstance(place(profile, gpus, facts=facts, version=version), Placements)


@settings(max_examples=150, deadline=None)
@given(facts=models, card=cards, count=st.integers(1, 8), length=lengths, size=sizes, used=utilizations, linked=st.booleans(), version=versions)  # fmt: skip
def test_a_larger_length_never_fits_where_a_smaller_does_not(
    facts: ModelFacts,
    card: int,
    count: int,
    length: int,
    size: int | None,
    used: float | None,
    linked: bool,
    version: str | None,
) -> None:
    gpus = configs.host(count, card, linked=linked)
    if not fits(asked(length, size, used), gpus, facts, version):
        for longer in (length + 1, length * 2, length + 50_000):
            assert not fits(asked(longer, size, used), gpus, facts, version)


@settings(max_examples=150, deadline=None)
@given(facts=models, card=cards, count=st.integers(1, 7), length=st.none() | lengths, size=sizes, used=utilizations, replicas=st.none() | st.integers(1, 4), version=versions)  # fmt: skip
def test_one_gpu_more_never_reduces_what_fits(
    facts: ModelFacts,
    card: int,
    count: int,
    length: int | None,
    size: int | None,
    used: float | None,
    replicas: int | None,
    version: str | None,
) -> None:
    profile = asked(length, size, used, replicas=replicas, max_model_len_auto=True)
    few = place(profile, configs.host(count, card), facts=facts, version=version)
    many = place(profile, configs.host(count + 1, card), facts=facts, version=version)
    if isinstance(few, NoFit):
        return
    assert isinstance(many, Placements), many
    longest = [min(one.max_model_len or 0 for one in each.replicas) for each in (few, many)]
    assert longest[1] >= longest[0]


@settings(max_examples=150, deadline=None)
@given(
    profiles=st.lists(
        st.tuples(models, st.none() | lengths, sizes, st.none() | st.sampled_from([0.25, 0.3, 0.5]), st.none() | st.integers(1, 3)),
        min_size=1, max_size=4,
    ),
    card=cards, count=st.integers(1, 8), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_no_gpu_is_leased_beyond_the_whole_of_it_and_a_plan_is_the_same_every_time(
    profiles: list[tuple[ModelFacts, int | None, int | None, float | None, int | None]],
    card: int,
    count: int,
    order: Random,
) -> None:
    gpus = configs.host(count, card)
    leases: list[Lease] = []
    for number, (facts, length, size, share, replicas) in enumerate(profiles):
        profile = asked(length, size, None, name=f"p{number}", gpu_share=share, replicas=replicas)
        answer = place(profile, gpus, leases, facts=facts)
        shuffled, turned = list(gpus), list(leases)
        order.shuffle(shuffled)
        order.shuffle(turned)
        assert place(profile, shuffled, turned, facts=facts) == answer
        if isinstance(answer, NoFit):
            assert answer.message
            assert answer.hint
            continue
        for one in answer.replicas:
            assert one.utilization is not None
            assert one.utilization <= (share or 1.0)
            assert one.card is not None
            assert one.card.kv_cache_bytes > 0
            leases += [Lease(gpu.uuid, one.replica, share or 1.0) for gpu in one.gpus]
        total: Counter[str] = Counter()
        for lease in leases:
            total[lease.uuid] += lease.fraction  # type: ignore[assignment]  # a Counter adds fractions as well
        assert all(taken <= 1.0 + 1e-9 for taken in total.values())


def test_64_gpus_and_32_profiles_are_planned_at_once() -> None:
    """A guard far wider than the figure in docs/planner.md, and of processor time, which others on the machine do not take."""
    gpus = [gpu for first in range(0, 64, 8) for gpu in configs.host(8, 80, first=first)]
    began = time.process_time()
    leases: list[Lease] = []
    for number in range(32):
        answer = place(
            asked(8192, None, None, name=f"p{number}", replicas=2, target_concurrency=4), gpus, leases,
            facts=MODELS[number % 4 if number % 4 != 1 else 0],
        )  # fmt: skip
        assert isinstance(answer, Placements), answer
        leases += [Lease(gpu.uuid, one.replica) for one in answer.replicas for gpu in one.gpus]
    took = time.process_time() - began
    assert len({lease.uuid for lease in leases}) == len(leases) == 64
    assert took < 2.0
    print(f"32 profiles on 64 GPUs: {took * 1000:.0f} ms")


CONFIGS = [
    configs.LLAMA_8B, configs.MISTRAL_7B, configs.QWEN3_30B_A3B, configs.DEEPSEEK_V3, configs.GPT_OSS_20B,
    configs.MISTRAL_SMALL_24B,
    configs.llama(model_type="jamba", attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16, mamba_d_conv=4),
    configs.llama(model_type="nemotron_h", hybrid_override_pattern="M*-M" * 8, ssm_state_size=128, conv_kernel=4),
]  # fmt: skip
DAMAGE = st.sampled_from(
    [None, 0, -1, 1, 3, 2**70, 1.5, float("nan"), "x", "", [], {}, [1, "a"], {"a": 1}, True, False]
)


# The deadline, in milliseconds, is for a loop over 2**70 layers; a machine that is busy does not take so long.
@settings(max_examples=300, deadline=20_000)
@given(config=st.sampled_from(CONFIGS), damage=DAMAGE, more=DAMAGE, which=st.randoms(use_true_random=False), files=st.booleans())  # fmt: skip
def test_a_damaged_configuration_is_planned_or_unknown_and_never_an_error(
    config: dict[str, Any], damage: Any, more: Any, which: Random, files: bool
) -> None:
    broken = dict(config)
    for value in (damage, more):
        key = which.choice(sorted(broken))
        inner = broken[key]
        if isinstance(inner, dict) and inner:
            broken[key] = inner | {which.choice(sorted(inner)): value}
        else:
            broken[key] = value
    found = architecture.read(broken, Files(10**10, "index") if files else None, "a")
    if isinstance(found, ModelFacts):
        place(asked(None, None, None, max_model_len_auto=True), configs.host(2), facts=found)
