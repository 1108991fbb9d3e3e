"""What could be changed so that a model fits, and which change a refusal names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import Lever, Placements
from gpuserved.core.planner import kv, memory
from gpuserved.core.planner.decide import place
from gpuserved.core.planner.kv import KvShape
from gpuserved.core.planner.levers import levers, smallest_change
from gpuserved.core.planner.memory import Card, Measured, Setting
from gpuserved.core.planner.options import Asked
from gpuserved.core.planner.weights import as_started

GIB = configs.GIB
LLAMA = configs.facts(configs.LLAMA_8B)
DEEPSEEK = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)


def asked(facts: Any = LLAMA, **profile: Any) -> Asked:
    return Asked(configs.profile(**profile), facts, tuple(configs.host(8)), {}, lambda _: None)


def changes(size: int = 1, there: int = 8, facts: Any = LLAMA, card: int = 24, **profile: Any) -> list[str]:
    found = levers(asked(facts, **profile), configs.host(1, card)[0], size, there)
    assert list(found) == sorted(found, key=lambda one: (-one.kv_cache_tokens, one.change))
    return [one.change for one in found]


def test_each_change_that_brings_something() -> None:
    assert set(changes(flags={"gpu_memory_utilization": 0.9})) >= {
        "tensor_parallel_size = 2", "gpu_memory_utilization = 0.95", 'kv_cache_dtype = "fp8"', 'quantization = "fp8"',
        "a checkpoint in fp8",
    }  # fmt: skip
    assert not any(one.startswith("gpu_memory") for one in changes(flags={"gpu_memory_utilization": 0.95}))
    assert not any(one.startswith("gpu_memory") for one in changes()), "the planner takes what there is"
    assert not any(one.startswith("kv_cache") for one in changes(flags={"kv_cache_dtype": "fp8"}))
    quantised = replace(LLAMA, quantization="awq")
    assert not any("fp8" in one for one in changes(facts=quantised, flags={"kv_cache_dtype": "fp8"}))


def test_a_utilisation_that_the_next_plan_would_refuse_is_not_advised() -> None:
    fixed: dict[str, Any] = {"flags": {"gpu_memory_utilization": 0.3}}
    full = replace(configs.host(1, 80)[0], memory_used_bytes=40 * GIB)
    for gpu, profile, most in (
        (full, fixed, "gpu_memory_utilization = 0.44"),
        (configs.host(1, 80)[0], fixed | {"gpu_share": 0.5}, "gpu_memory_utilization = 0.44"),
        (full, {}, None),
        (configs.host(1, 80)[0], {"gpu_share": 0.5}, None),
    ):
        found = [one.change for one in levers(asked(**profile), gpu, 1, 8)]
        assert [one for one in found if one.startswith("gpu_memory")] == ([most] if most else [])


@pytest.mark.parametrize(
    ("size", "there", "wider"), [(1, 8, 2), (2, 8, 4), (2, 3, None), (1, 1, None), (8, 8, None), (4, 8, 8)]
)
def test_the_next_wider_size_that_divides(size: int, there: int, wider: int | None) -> None:
    found = [one for one in changes(size, there) if one.startswith("tensor")]
    assert found == ([] if wider is None else [f"tensor_parallel_size = {wider}"])


def test_what_a_change_brings_is_what_the_plan_would_then_hold() -> None:
    (gpu,) = configs.host(1, 24)
    question = asked()
    for lever in levers(question, gpu, 1, 2):
        if lever.change == "tensor_parallel_size = 2":
            then = memory.card(LLAMA, replace(question.setting(gpu, 1), tensor_parallel_size=2))
            assert lever == Lever(lever.change, then.kv_cache_tokens, 8192, fits=True)
            return
    raise AssertionError("no wider size")


def card(kv_cache_bytes: int) -> Card:
    return Card(
        total_bytes=24 * GIB, utilization=0.9, weights_bytes=15 * GIB, activation_bytes=GIB, graph_bytes=0, non_torch_bytes=0,
        kv_cache_bytes=kv_cache_bytes, headroom_bytes=0, margin_bytes=0, kv_cache_tokens=0, shape=KvShape(), source="estimated",
    )  # fmt: skip


def holding(tokens: int) -> Card:
    """A card whose cache takes one request of so many tokens and no more."""
    return card(kv.request_bytes(LLAMA, KvShape(), tokens) + kv.reserved_bytes(LLAMA, KvShape()))


CHANGES = (
    "max_num_seqs = 256", "a checkpoint in fp8", 'quantization = "fp8"', 'kv_cache_dtype = "fp8"', "tensor_parallel_size = 2",
    "gpu_memory_utilization = 0.95",
)  # fmt: skip


def test_the_change_that_costs_least_is_the_hint() -> None:
    none = card(-GIB)
    for count in range(1, len(CHANGES) + 1):
        found = tuple(Lever(change, 1, 8192, fits=True) for change in CHANGES[:count])
        assert smallest_change(asked(), none, found, 1) == CHANGES[count - 1]
        useless = tuple(replace(lever, fits=lever is found[0]) for lever in found)
        assert smallest_change(asked(), none, useless, 1) == CHANGES[0]


def test_a_shorter_request_costs_nothing_where_a_useful_one_fits() -> None:
    fitting = (Lever("gpu_memory_utilization = 0.95", 1, 8192, fits=True),)
    assert smallest_change(asked(), holding(4096), fitting, 1) == "max_model_len = 4096"
    assert smallest_change(asked(), holding(2048), fitting, 1) == "max_model_len = 2048"
    assert smallest_change(asked(), holding(2032), fitting, 1) == "gpu_memory_utilization = 0.95"
    assert smallest_change(asked(max_model_len=1000), holding(2048), fitting, 1) == "max_model_len = 1000"
    assert (
        smallest_change(asked(max_model_len=None), holding(4096), fitting, 1)
        == "gpu_memory_utilization = 0.95"
    )


def test_where_no_change_helps_more_gpus_do() -> None:
    assert smallest_change(asked(), None, (), 1) == "use GPUs with more memory"
    assert smallest_change(asked(), card(-GIB), (), 1).startswith(
        "tensor_parallel_size = 2 on 2 GPUs of this size"
    )
    assert smallest_change(asked(), card(-GIB), (), 2).startswith(
        "tensor_parallel_size = 4 on 4 GPUs of this size"
    )
    tiny = replace(card(-GIB), total_bytes=GIB)
    assert smallest_change(asked(), tiny, (), 1) == "use a quantised checkpoint, or GPUs with more memory"


def test_the_levers_are_those_of_the_card_with_the_least_room() -> None:
    mixed = [*configs.host(1, 48, linked=False), *configs.host(1, 24, linked=False, first=1)]
    both, small = (
        place(configs.profile(target_concurrency=500, tensor_parallel_size=1), gpus, facts=LLAMA)
        for gpus in (mixed, mixed[1:])
    )
    assert isinstance(both, Placements)
    assert isinstance(small, Placements)
    assert {one.change: one.kv_cache_tokens for one in small.levers}.items() <= {
        one.change: one.kv_cache_tokens for one in both.levers
    }.items()


@pytest.mark.parametrize(
    "setting",
    [
        Setting(80 * GIB), Setting(80 * GIB, utilization=0.7), Setting(24 * GIB, tensor_parallel_size=2), Setting(GIB),
        Setting(80 * GIB, kv_cache_bytes=4 * GIB), Setting(80 * GIB, kv_cache_bytes=4 * GIB, utilization=0.5),
        Setting(80 * GIB, kv_cache_bytes=400 * GIB), Setting(80 * GIB, graphs=False),
        Setting(80 * GIB, measured=Measured(50 * GIB, 0.9)),
        Setting(80 * GIB, utilization=0.5, measured=Measured(50 * GIB, 0.9, 15 * GIB, 3 * GIB, GIB)),
    ],
)  # fmt: skip
def test_the_items_of_a_card_add_up_to_it(setting: Setting) -> None:
    found = memory.card(LLAMA, setting)
    items = (
        found.weights_bytes, found.activation_bytes, found.graph_bytes, found.non_torch_bytes, found.kv_cache_bytes,
        found.headroom_bytes,
    )  # fmt: skip
    assert sum(items) == found.total_bytes == setting.memory_total_bytes
    assert found.source == ("measured" if setting.measured else "estimated")
    if setting.utilization is None or setting.kv_cache_bytes or setting.measured:
        assert found.margin_bytes == 0
    else:
        assert 0 < found.margin_bytes < 0.05 * found.total_bytes
    assert found.kv_cache_tokens == kv.tokens(LLAMA, found.shape, max(0, found.kv_cache_bytes))


def test_adapters_of_experts_are_not_counted() -> None:
    dense, sparse = (
        as_started(one, {"enable_lora": True}).uncounted
        for one in (LLAMA, configs.facts(configs.QWEN3_30B_A3B))
    )
    assert (dense, sparse) == ((), ("adapters of experts (enable_lora)",))
    assert as_started(LLAMA, {"enable_lora": "true"}) == LLAMA
    for flags in (
        {"cpu_offload_gb": 0},
        {"cpu_offload_gb": "4"},
        {"speculative_config": "ngram"},
        {"max_loras": 4},
    ):
        assert as_started(LLAMA, flags) == LLAMA
    assert as_started(LLAMA, {"cpu_offload_gb": 0.5}).weights.offloaded_bytes == GIB // 2
