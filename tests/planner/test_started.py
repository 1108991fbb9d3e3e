"""What flags change of the weights, flag by flag; and a configuration's length that is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner.model import LayerKind, Layers
from gpuserved.core.planner.weights import adapter_bytes, as_started

LLAMA = configs.facts(configs.LLAMA_8B)
EXPERTS = configs.facts(configs.QWEN3_30B_A3B)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("fp8", 0.5),
        ("ptpc_fp8", 0.5),
        ("fp8_per_tensor", 0.5),
        ("fp8_per_block", 0.52),
        ("bitsandbytes", 0.3),
    ],
)
def test_what_quantisation_leaves_of_the_matrices(name: str, left: float) -> None:
    """8 bits are a half, scales for each block a little more; 4 bits with theirs are less than a third."""
    plain = 2 * 151_936 * 2048 * 2
    whole = EXPERTS.weights
    found = as_started(EXPERTS, {"quantization": name})
    assert found.quantization == "while loading"
    assert found.weights.total_bytes == plain + int((whole.total_bytes - plain) * left)
    assert found.weights.expert_bytes == int(whole.expert_bytes * left)
    assert found.weights.loading_bytes == whole.total_bytes
    assert as_started(found, {"quantization": name}) == found, (
        "what is quantised already is not quantised again"
    )


@pytest.mark.parametrize(
    ("method", "counted"), [("ngram", True), ("ngram_gpu", True), ("suffix", True), ("eagle", False)]
)
def test_drafts_from_the_text_itself_take_no_memory(method: str, counted: bool) -> None:
    found = as_started(LLAMA, {"speculative_config": {"method": method}})
    assert (found.uncounted == ()) == counted


def test_an_adapter_takes_its_rank_and_slots_or_their_defaults() -> None:
    def more(**flags: Any) -> int:
        found = as_started(LLAMA, {"enable_lora": True, **flags}).weights
        assert (
            found.total_bytes - found.replicated_bytes
            == LLAMA.weights.total_bytes - LLAMA.weights.replicated_bytes
        )
        return found.total_bytes - LLAMA.weights.total_bytes

    assert more() == adapter_bytes(LLAMA, 16, 1)
    assert more(max_lora_rank=1, max_loras=3) == adapter_bytes(LLAMA, 1, 3)
    for none in (0, -1, True, "8"):
        assert more(max_lora_rank=none, max_loras=none) == more()


def test_layers_with_a_state_have_no_adapters_and_those_behind_them_do() -> None:
    state = Layers(LayerKind.STATE, 8, state_bytes=1000)
    for layers in ((state, *LLAMA.layers), (*LLAMA.layers, state)):
        assert adapter_bytes(replace(LLAMA, layers=layers), 16, 1) == adapter_bytes(LLAMA, 16, 1)


@pytest.mark.parametrize("length", [0, -1])
def test_a_longest_context_of_nothing_is_none(length: int) -> None:
    assert configs.facts(configs.llama(max_position_embeddings=length), 10**9).max_length is None
    stretched = {"rope_type": "linear", "factor": length}
    assert configs.facts(configs.llama(rope_scaling=stretched), 10**9).max_length is None
