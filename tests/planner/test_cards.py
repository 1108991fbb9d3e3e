"""Memory cards worked out by hand, to the byte: the item that a rule is about is the difference of two of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner import memory
from gpuserved.core.planner.memory import Card, Measured, Setting, cuda_bytes
from gpuserved.core.planner.model import LayerKind, Layers, ModelFacts, Weights
from gpuserved.core.planner.releases import release_of

GIB = configs.GIB
MIB = 1024**2
LLAMA = configs.facts(configs.LLAMA_8B)
H100 = int(configs.TOTALS_GIB[80] * GIB)


def card(facts: ModelFacts = LLAMA, total: int = H100, name: str = "NVIDIA H100", **more: Any) -> Card:
    return memory.card(facts, Setting(total, name, **more))


def without_cache(found: Card) -> int:
    return found.weights_bytes + found.activation_bytes + found.graph_bytes + found.non_torch_bytes


def weighing(**more: Any) -> ModelFacts:
    """An 8B model whose weights are these."""
    return replace(LLAMA, weights=replace(LLAMA.weights, beside_bytes=0, matrices=(), **more))


def test_what_a_model_keeps_back_is_nothing_unless_it_is_said() -> None:
    bare = Weights(6 * GIB)
    plain = ModelFacts("id", "X", (Layers(LayerKind.FULL, 2, 1, 64, 64),), 8, 1, 512, 1000, bare)
    full = replace(
        plain,
        weights=Weights(6 * GIB, 0, 0, 0, 0, 0, 0, (), 0, "index"),
        divisible=(), intermediate_size=0, hidden_held=7, logits_held=1, experts=0, experts_per_token=0, expert_width=0,
        max_length=None, dtype_bytes=2, quantization=None, multimodal=False, notes=(), uncounted=(),
    )  # fmt: skip
    assert plain == full
    for version in (None, "0.26.0", "0.32.0"):
        assert card(plain, version=version) == card(full, version=version)
    assert Layers(LayerKind.STATE, 3) == Layers(LayerKind.STATE, 3, 0, 0, 0, 0, 0)
    assert not plain.mla
    assert replace(plain, layers=(*plain.layers, Layers(LayerKind.MLA, 1, 1, 576))).mla, (
        "one group of them is enough"
    )


@pytest.mark.parametrize(
    ("total", "reserved"),
    [(24 * GIB, 640 * MIB), (H100, int(0.011 * H100)), (180 * GIB, int(0.011 * 180 * GIB))],
)
def test_what_cuda_sees_where_the_driver_does_not_tell(total: int, reserved: int) -> None:
    setting = Setting(total, "x", version="0.26.0")
    assert cuda_bytes(setting, release_of("0.26.0")) == total - reserved
    assert cuda_bytes(setting, release_of(None)) == total, "the error of an unknown release holds it"


@pytest.mark.parametrize("version", [None, "0.26.0", "0.32.0"])
def test_the_cache_gets_what_is_left_of_the_share(version: str | None) -> None:
    release = release_of(version)
    error = int(release.error_share * H100)
    found = card(version=version, utilization=0.9)
    share = int(0.9 * cuda_bytes(Setting(H100, version=version), release))
    assert found.kv_cache_bytes == share - without_cache(found)
    assert found.margin_bytes == (error if version else error - found.graph_bytes), (
        "the error of an unknown one holds graphs"
    )
    free = card(version=version)
    assert (free.utilization, free.margin_bytes) == (0.92, 0)
    share = int(0.92 * cuda_bytes(Setting(H100, version=version), release))
    assert free.kv_cache_bytes == share - without_cache(free) - found.margin_bytes
    assert card(total=12 * GIB, utilization=0.9).margin_bytes == 0, "graphs are more than its error"


def test_what_is_loaded_before_it_shrinks_must_fit_into_95_percent() -> None:
    most = int(0.95 * H100)
    fits, over = (card(weighing(loading_bytes=each)) for each in (most, most + 1))
    assert fits.kv_cache_bytes == card(weighing()).kv_cache_bytes > 0
    assert over.kv_cache_bytes == -1
    assert over.longest(LLAMA, 1000) == 0
    assert over.concurrency(LLAMA, 1000) == 0
    assert card(weighing(loading_bytes=most + 1), tensor_parallel_size=2).kv_cache_bytes > 0, "half on each"


def test_more_than_everything_cannot_be_offloaded() -> None:
    assert card(weighing(offloaded_bytes=100 * GIB)).weights_bytes == 0
    left = card(weighing(offloaded_bytes=4 * GIB)).weights_bytes
    assert left == LLAMA.weights.total_bytes - 4 * GIB


@pytest.mark.parametrize("name", ["H100", "H200", "H20", "H800", "GH200", "h100 80gb hbm3"])
def test_kernels_of_a_hopper_card_pad_no_experts(name: str) -> None:
    padded = weighing(expert_bytes=8 * GIB, padding_bytes=MIB)

    def saved(card_name: str, tp: int, dp: int) -> int:
        size: dict[str, Any] = {"tensor_parallel_size": tp, "data_parallel_size": dp, "version": "0.26.0"}
        return (
            card(padded, name="NVIDIA B200", **size).weights_bytes
            - card(padded, name=card_name, **size).weights_bytes
        )

    assert [saved(f"NVIDIA {name}", *each) for each in ((1, 1), (2, 1), (2, 4))] == [MIB, MIB // 2, MIB // 8]
    assert saved("NVIDIA A100", 1, 1) == saved("NVIDIA L40S", 1, 1) == 0


@pytest.mark.parametrize(("value_bytes", "more"), [(None, 0), (2, 0), (1, 32 * MIB)])
def test_an_8_bit_cache_holds_32_mib_beside_the_weights(value_bytes: int | None, more: int) -> None:
    plain = card(weighing(), version="0.26.0").weights_bytes
    assert plain == LLAMA.weights.total_bytes
    assert card(weighing(), version="0.26.0", kv_value_bytes=value_bytes).weights_bytes == plain + more


def test_libraries_take_more_where_gpus_talk_to_each_other() -> None:
    release = release_of("0.26.0")
    found = {
        (tp, dp): card(tensor_parallel_size=tp, data_parallel_size=dp, version="0.26.0").non_torch_bytes
        for tp in (1, 2) for dp in (1, 2)
    }  # fmt: skip
    alone = found.pop((1, 1))
    assert alone == release.non_torch_bytes
    assert set(found.values()) == {release.non_torch_parallel_bytes}
    assert release.non_torch_parallel_bytes > alone


@pytest.mark.parametrize(
    ("version", "total", "sequences", "large"),
    [
        ("0.32.0", 80, 256, False), ("0.32.0", 80, 257, True), ("0.32.0", 24, 257, True), ("0.32.0", 24, None, False),
        (None, 80, 16, True), (None, 24, 1024, False),
    ],
)  # fmt: skip
def test_graphs_follow_the_sequences_or_the_card_where_the_release_is_not_known(
    version: str | None, total: int, sequences: int | None, large: bool
) -> None:
    release = release_of(version)
    found = card(total=total * GIB, version=version, max_num_seqs=sequences).graph_bytes
    assert found == (release.graph_bytes if large else release.graph_small_bytes)
    assert card(total=total * GIB, version=version, max_num_seqs=sequences, graphs=False).graph_bytes == 0


@pytest.mark.parametrize("version", [None, "0.26.0"])
@pytest.mark.parametrize("share", [None, 0.9])
def test_a_cache_of_a_fixed_size_fits_to_the_byte(version: str | None, share: float | None) -> None:
    release = release_of(version)
    bare = card(version=version, utilization=share, kv_cache_bytes=GIB)
    assert bare.kv_cache_bytes == GIB
    seen = int((share or 1.0) * cuda_bytes(Setting(H100, version=version), release))
    most = seen - without_cache(bare) - int(release.error_share * H100)
    full, over = (card(version=version, utilization=share, kv_cache_bytes=each) for each in (most, most + 1))
    assert (full.kv_cache_bytes, over.kv_cache_bytes) == (most, -1)
    assert (full.headroom_bytes, full.margin_bytes) == (H100 - without_cache(bare) - most, 0)
    assert (full.utilization, full.release) == (share or 1.0, version and release.name)
    assert (full.kv_cache_tokens, over.kv_cache_tokens) == (most // (131_072 * 16) * 16, 0)


def measured(utilization: float | None = None, tensor_parallel_size: int = 1, **more: Any) -> Card:
    found = Measured(**({"kv_cache_bytes": 50 * GIB, "utilization": 0.92, "weights_bytes": 15 * GIB} | more))
    return card(measured=found, utilization=utilization, tensor_parallel_size=tensor_parallel_size)


def test_a_larger_share_brings_a_little_less_than_itself_and_a_smaller_one_costs_itself() -> None:
    def moved(share: float) -> int:
        return int(share * H100) - int(0.92 * H100)

    assert measured(0.92).kv_cache_bytes == 50 * GIB
    assert measured(0.95).kv_cache_bytes == 50 * GIB + int(0.99 * moved(0.95))
    assert measured(0.8).kv_cache_bytes == 50 * GIB + moved(0.8)
    assert measured(0.8).utilization == 0.8
    assert measured(0.05).kv_cache_tokens == 0


def test_what_a_start_reported_is_told_apart_as_far_as_it_says() -> None:
    budget = int(0.92 * H100)
    rest = budget - 65 * GIB
    silent = measured()
    assert (silent.graph_bytes, silent.non_torch_bytes) == (0, release_of(None).non_torch_bytes)
    assert silent.activation_bytes == rest - silent.non_torch_bytes
    pair = measured(tensor_parallel_size=2)
    assert pair.non_torch_bytes == release_of(None).non_torch_parallel_bytes
    full = measured(activation_bytes=5 * GIB, graph_bytes=GIB, version="0.32.0")
    assert (full.graph_bytes, full.activation_bytes) == (GIB, 4 * GIB), (
        "vLLM's peak has the graphs' estimate inside"
    )
    assert full.non_torch_bytes == rest - 5 * GIB
    odd = measured(activation_bytes=MIB, graph_bytes=GIB, version="0.32.0")
    assert (odd.activation_bytes, odd.non_torch_bytes) == (0, rest - GIB)
