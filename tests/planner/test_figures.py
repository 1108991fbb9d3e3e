"""The figures that a plan is made of: vLLM's batch defaults, what each release takes, and what lies beside a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner.model import LayerKind, Layers, ModelFacts, Weights
from gpuserved.core.planner.peak import Batch, Split, activation_peak, default_batch
from gpuserved.core.planner.releases import release_of
from gpuserved.core.planner.weights import rounding, with_beside

GIB = configs.GIB
MIB = 1024**2
LLAMA = configs.facts(configs.LLAMA_8B)


@pytest.mark.parametrize(
    ("total_bytes", "name", "sequences", "tokens"),
    [
        (70 * GIB - 1, "NVIDIA H100", 256, 2048), (70 * GIB, "NVIDIA H100", 1024, 8192),
        (80 * GIB, "NVIDIA A100-SXM4-80GB", 256, 2048), (160 * GIB - 1, "NVIDIA B200", 1024, 8192),
        (160 * GIB, "NVIDIA B200", 1024, 16_384),
    ],
)  # fmt: skip
def test_batches_that_vllm_takes_where_nothing_is_set(
    total_bytes: int, name: str, sequences: int, tokens: int
) -> None:
    assert default_batch(total_bytes, name) == Batch(sequences, tokens)


@pytest.mark.parametrize(
    ("version", "graphs", "small", "alone", "parallel", "error"),
    [
        (None, 0.6, 0.3, 0.15, 0.55, 0.02), ("0.11.0", 0.6, 0.3, 0.15, 0.55, 0.02), ("0.0.1", 0.6, 0.3, 0.15, 0.55, 0.02),
        ("0.26.0", 0.8, 0.5, 0.24, 0.65, 0.003), ("0.32.0", 1.1, 0.5, 0.24, 0.65, 0.005),
    ],
)  # fmt: skip
def test_what_each_release_takes(
    version: str | None, graphs: float, small: float, alone: float, parallel: float, error: float
) -> None:
    """In GiB, from measurements and published rows; docs/planner.md compares plans made of them with both."""
    found = release_of(version)
    assert (found.graph_bytes, found.graph_small_bytes) == (int(graphs * GIB), int(small * GIB))
    assert (found.non_torch_bytes, found.non_torch_parallel_bytes) == (int(alone * GIB), int(parallel * GIB))
    assert found.error_share == error


@pytest.mark.parametrize(
    ("version", "architecture", "experts", "flagged", "runners"),
    [
        (None, "X", 0, False, (True, False)), ("0.11.0", "X", 8, True, (True, False)),
        ("0.26.0", "X", 0, False, (False, True)), ("0.26.0", "X", 0, True, (True, True)),
        ("0.26.0", "X", 8, False, (True, False)), ("0.26.0", "Qwen2MoeForCausalLM", 8, False, (False, True)),
        ("0.26.0", "DeepseekV2ForCausalLM", 8, False, (False, True)), ("0.26.0", "GraniteMoeForCausalLM", 8, False, (False, True)),
        ("0.32.0", "X", 0, False, (False, True)), ("0.32.0", "X", 8, False, (True, True)), ("0.32.0", "X", 0, True, (True, True)),
    ],
)  # fmt: skip
def test_which_runner_may_run_a_model(
    version: str | None, architecture: str, experts: int, flagged: bool, runners: tuple[bool, bool]
) -> None:
    facts = replace(LLAMA, architecture=architecture, experts=experts)
    assert release_of(version).runners(facts, first_runner=flagged) == runners
    assert release_of(version).runners(facts) == release_of(version).runners(facts, first_runner=False)


def test_a_state_in_any_layer_is_the_first_runners() -> None:
    mixed = replace(LLAMA, layers=(*LLAMA.layers, Layers(LayerKind.STATE, 1, state_bytes=8)))
    assert release_of("0.26.0").runners(mixed) == (True, False)


def peak(
    version: str = "0.26.0", tokens: int = 100, sequences: int = 1, split: Split | None = None, **more: Any
) -> int:
    """Of a small model in whose step everything can be counted."""
    facts = ModelFacts(
        "id",
        "X",
        (Layers(LayerKind.FULL, 2, 2, 16, 8),),
        4,
        2,
        32,
        10,
        Weights(1),
        intermediate_size=64,
        hidden_held=7,
    )
    changed = replace(facts, **more)
    eager = split or Split(compiled=False)
    return activation_peak(changed, Batch(sequences, tokens), eager, release_of(version), large=False)


def test_a_step_holds_its_widest_intermediate_and_the_hidden_states() -> None:
    """In 16 bits a token: gate, up and product of the MLP, or queries twice with keys and values; and seven hidden states."""
    base = 96 * MIB
    assert peak() == base + 100 * 2 * (3 * 64 + 7 * 32)
    assert peak(intermediate_size=0) == base + 100 * 2 * (2 * 4 * 16 + 2 * (16 + 8) + 7 * 32)
    assert peak(dtype_bytes=4) == base + 100 * 4 * (3 * 64 + 7 * 32)
    assert peak(split=Split(2, compiled=False)) == base + 100 * 2 * (3 * 64 // 2 + 7 * 32)
    assert peak(multimodal=True) == peak() + GIB
    for name in ("awq", "gptq", "bitsandbytes"):
        assert peak(quantization=name) == peak() + 2 * 32 * 64 * 2, "a matrix that is unpacked"
    assert Split() == Split(1, 1, True, False)


def test_a_graph_that_is_compiled_is_tuned_on_a_copy_of_the_embedding() -> None:
    table = 10**6 * 32 * 2
    assert peak(vocab_size=10**6, split=Split()) == 96 * MIB + table + 2 * 100 * 32 * 2
    assert (
        peak(vocab_size=10**6, tokens=1, sequences=40, split=Split(compiled=False))
        == 96 * MIB + 2 * 40 * 10**6
    )
    later = peak("0.32.0", vocab_size=10**6, tokens=1, sequences=40, split=Split(compiled=False))
    assert later == 96 * MIB + int((2 + 4.25) * 40 * 10**6)


def test_experts_keep_buffers_of_each_tokens_experts() -> None:
    """Gate and up of two experts a token, at the widest, and two hidden states; mxfp4 keeps four hidden states."""
    mixture: dict[str, Any] = {"experts": 8, "experts_per_token": 2, "expert_width": 48}
    plain = peak(experts=8)
    assert plain - peak() == 32 * MIB, "small buffers of their own"
    assert peak(**mixture) == plain + 100 * 2 * (2 * (48 + 96) + 2 * 32)
    assert peak(**mixture | {"expert_width": 8}) == plain + 100 * 2 * (2 * (32 + 32) + 2 * 32)
    wide = peak(**mixture, split=Split(1, 4, compiled=False))
    assert wide == plain + 400 * 2 * (2 * (48 + 96) + 2 * 32), "tokens of all engines come together"
    for name in ("mxfp4", "gpt_oss_mxfp4"):
        assert peak(**mixture, quantization=name) == plain + 100 * 2 * 4 * 32


@pytest.mark.parametrize(
    ("size", "more"), [(10 * MIB, 0), (10 * MIB + 1, 2), (10 * MIB - 1, 0), (12 * MIB, 0), (12 * MIB + 2, 2)]
)
def test_from_10_mib_on_matrices_are_whole_multiples_of_2(size: int, more: int) -> None:
    assert rounding(Weights(1, matrices=((size, 3),)), 1) == 3 * more * MIB
    assert rounding(Weights(1, matrices=((2 * size, 3),)), 2) == 3 * more * MIB


def test_what_lies_beside_a_checkpoint() -> None:
    bare = Weights(1)

    def rotary(**text: Any) -> int:
        return with_beside(bare, text, replace(LLAMA, max_length=1000)).beside_bytes

    assert rotary() == 1000 * 128 * 2
    assert rotary(rope_local_base_freq=10_000) == rotary(rope_parameters={"a": {}, "b": 1}) == 2 * rotary()
    assert with_beside(bare, {}, replace(LLAMA, max_length=None)).beside_bytes == 0
    found = dict(with_beside(bare, {}, LLAMA).matrices)
    assert found == {
        4096 * (4096 + 8 * 256) * 2: 32, 4096 * 4096 * 2: 32, 2 * 4096 * 14_336 * 2: 32, 4096 * 14_336 * 2: 32,
    }  # fmt: skip
    assert with_beside(bare, {}, LLAMA).copied_bytes == 0
