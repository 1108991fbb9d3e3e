"""Flags that change what is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import NoFit, Placements
from gpuserved.core.planner import memory
from gpuserved.core.planner.decide import place
from gpuserved.core.planner.memory import Setting
from gpuserved.core.planner.weights import adapter_bytes, as_started

GIB = configs.GIB
LLAMA = configs.facts(configs.LLAMA_8B)
BIG = configs.facts(configs.LLAMA_70B)


def card(flags: dict[str, Any], size: int = 1) -> memory.Card:
    return memory.card(as_started(LLAMA, flags), Setting(int(79.65 * GIB), "H100", size))


def test_quantisation_while_loading_halves_the_matrices_and_not_the_embeddings() -> None:
    small = card({"quantization": "fp8"})
    embeddings = 2 * 128_256 * 4096 * 2
    assert small.weights_bytes == embeddings + (16_060_522_496 - embeddings) // 2
    assert card({"quantization": "awq"}).weights_bytes == card({}).weights_bytes, (
        "awq needs a checkpoint of its own"
    )


def test_what_is_quantised_must_fit_whole_before() -> None:
    fp8 = configs.profile(flags={"quantization": "fp8"}, max_model_len=4096)
    assert isinstance(place(fp8, configs.host(1, 80), facts=BIG), NoFit), "131 GiB are loaded first"
    two = place(fp8, configs.host(2, 80), facts=BIG)
    assert isinstance(two, Placements)
    assert two.replicas[0].tensor_parallel_size == 2


def test_the_hint_of_a_refusal_is_one_that_fits() -> None:
    no = place(
        configs.profile(max_model_len=4096, flags={"kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.95}),
        configs.host(1, 80),
        facts=BIG,
    )
    assert isinstance(no, NoFit)
    assert all(not lever.fits for lever in no.levers if lever.change.startswith("quantization"))
    assert no.hint == "a checkpoint in fp8"
    bare = place(configs.profile(max_model_len=4096), configs.host(1, 24), facts=BIG)
    assert isinstance(bare, NoFit)
    assert bare.hint == "tensor_parallel_size = 8 on 8 GPUs of this size, or a quantised checkpoint"


@pytest.mark.parametrize("facts", [LLAMA, BIG])
def test_every_refusal_names_a_change_that_would_be_accepted(facts: Any) -> None:
    for used in (0.3, 0.5, 0.9):
        profile = configs.profile(max_model_len=65_536, flags={"gpu_memory_utilization": used})
        no = place(profile, configs.host(1, 24), facts=facts)
        if isinstance(no, NoFit) and no.hint.startswith("max_model_len = "):
            shorter = configs.profile(max_model_len=int(no.hint.split()[-1]), flags=profile.flags)
            assert isinstance(place(shorter, configs.host(1, 24), facts=facts), Placements)


def test_adapters_take_room() -> None:
    each = adapter_bytes(LLAMA, 16, 1)
    layers = 32 * (2 * 8192 + 2 * 5120 + 3 * 18_432)
    assert each == (layers + 2 * (4096 + 128_256)) * 16 * 2, "with the embedding's and the output layer's"
    assert card({"enable_lora": True, "max_lora_rank": 64, "max_loras": 4}).kv_cache_bytes == card({}).kv_cache_bytes - 16 * each  # fmt: skip
    assert card({"enable_lora": True}, 2).kv_cache_bytes == card({}, 2).kv_cache_bytes - each, "on every GPU"


def test_offloaded_weights_are_not_on_the_gpu() -> None:
    assert card({"cpu_offload_gb": 4}).kv_cache_bytes == card({}).kv_cache_bytes + 4 * GIB


def test_what_no_formula_covers_is_said() -> None:
    def codes(flags: dict[str, Any]) -> list[str]:
        answer = place(configs.profile(flags=flags), configs.host(1), facts=LLAMA)
        assert isinstance(answer, Placements)
        return [warning.code for warning in answer.warnings]

    assert "memory_not_counted" in codes({"speculative_config": {"method": "eagle", "model": "a/b"}})
    assert "memory_not_counted" not in codes({"speculative_config": {"method": "ngram"}})


def test_pictures_take_room() -> None:
    seeing = configs.facts(
        {"vision_config": {}, "text_config": configs.LLAMA_8B, "architectures": ["X"]}, 16_060_522_496
    )
    setting = Setting(int(79.65 * GIB), "H100")
    assert memory.card(seeing, setting).activation_bytes == memory.card(LLAMA, setting).activation_bytes + GIB
