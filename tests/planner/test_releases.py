"""What the installed version changes of a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner import memory, weights
from gpuserved.core.planner.decide import unmeasured
from gpuserved.core.planner.memory import Setting
from gpuserved.core.planner.options import Asked
from gpuserved.core.planner.releases import UNKNOWN, release_of

GIB = configs.GIB
MIB = 1024**2
H100 = int(configs.TOTALS_GIB[80] * GIB)
LLAMA = configs.facts(configs.LLAMA_8B)


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.26.0", "0.26"), ("0.26.1rc2", "0.26"), ("0.27.0", "0.27 and later"), ("0.32.0+cu130", "0.27 and later"),
     ("1.0", "0.27 and later"), ("0.25.3", "before 0.26"), ("0.11.0", "before 0.26"), (None, "unknown"), ("", "unknown"), ("main", "unknown")],
)  # fmt: skip
def test_a_version_finds_its_rules(version: str | None, name: str) -> None:
    assert release_of(version).name == name


def test_without_a_version_a_plan_is_the_most_cautious() -> None:
    card = memory.card(LLAMA, Setting(H100, "NVIDIA H100"))
    assert card.release is None
    for version in ("0.26.0", "0.32.0"):
        known = memory.card(LLAMA, Setting(H100, "NVIDIA H100", version=version))
        assert known.kv_cache_bytes > card.kv_cache_bytes
        assert known.release == release_of(version).name
    assert UNKNOWN.error_share > release_of("0.26").error_share


def test_what_the_driver_keeps_is_not_shared_out() -> None:
    """`gpu_memory_utilization` is a share of what CUDA sees."""
    told = Setting(H100, "NVIDIA H100", utilization=0.5, version="0.26.0", memory_reserved_bytes=480 * MIB)
    none = replace(told, memory_reserved_bytes=0)
    untold = replace(told, memory_reserved_bytes=None)
    kv = [memory.card(LLAMA, each).kv_cache_bytes for each in (none, told, untold)]
    assert kv[0] - kv[1] == pytest.approx(240 * MIB, abs=2)
    assert kv[2] < kv[1], "where the driver does not tell, more is taken off than any is known to keep"


def test_later_releases_count_graphs_and_the_samplers_state() -> None:
    old, new = (
        memory.card(LLAMA, Setting(H100, "NVIDIA H100", version=each)) for each in ("0.26.0", "0.32.0")
    )
    assert old.graph_bytes == 0
    assert new.graph_bytes > GIB
    assert new.activation_bytes - old.activation_bytes == pytest.approx(4.25 * 1024 * 128_256, rel=0.01)
    eager = memory.card(LLAMA, Setting(H100, "NVIDIA H100", version="0.32.0", graphs=False))
    assert eager.graph_bytes == 0
    assert eager.activation_bytes < new.activation_bytes, "nothing is compiled, so nothing is tuned"


def test_a_flag_that_the_second_runner_does_not_know_is_planned_for_the_first() -> None:
    """It samples on 32-bit copies, and takes its graphs from the KV cache: 14 B for each of 1024 sequences and 128256 entries."""

    def room(**more: Any) -> memory.Card:
        asked = Asked(configs.profile(**more), LLAMA, tuple(configs.host(1)), {}, unmeasured, "0.26.0")
        return memory.card(LLAMA, asked.setting(asked.free[0], 1))

    plain, drafted = room(), room(flags={"speculative_config": {"method": "ngram"}})
    told = room(env={"VLLM_USE_V2_MODEL_RUNNER": "0"})
    assert drafted.activation_bytes == told.activation_bytes >= 14 * 1024 * 128_256 > plain.activation_bytes
    assert drafted.graph_bytes == told.graph_bytes > plain.graph_bytes == 0


def test_a_large_embedding_is_planned_for_on_any_release() -> None:
    """Tuning its kernel on a copy takes more than the floor of a small card."""
    large = configs.facts(configs.llama(vocab_size=262_208, hidden_size=5376, num_attention_heads=42))
    card = memory.card(large, Setting(int(configs.TOTALS_GIB[24] * GIB), "NVIDIA GeForce RTX 4090", 2))
    whole = memory.card(large, Setting(int(configs.TOTALS_GIB[48] * GIB), "NVIDIA L40S"))
    assert whole.activation_bytes > 262_208 * 5376 * 2 > card.activation_bytes


def test_mxfp4_is_padded_but_on_a_hopper_card_of_a_release_that_does_not() -> None:
    oss = configs.facts(configs.GPT_OSS_120B, 65_248_815_744)
    hopper = memory.card(oss, Setting(H100, "NVIDIA H100", version="0.26.0")).weights_bytes
    other = memory.card(oss, Setting(H100, "NVIDIA B200", version="0.26.0")).weights_bytes
    assert other - hopper == oss.weights.padding_bytes > 2 * GIB
    assert memory.card(oss, Setting(H100, "NVIDIA H100")).weights_bytes > hopper


def test_large_matrices_are_rounded_up_where_they_are_no_multiple_of_two_mib() -> None:
    even = configs.facts(configs.LLAMA_8B).weights
    odd = configs.facts(
        configs.llama(intermediate_size=18_944, hidden_size=3584, num_attention_heads=28)
    ).weights
    assert weights.rounding(even, 1) == 0
    assert weights.rounding(odd, 1) == 32 * 4 * 2 * MIB
    assert even.beside_bytes == 131_072 * 128 * 2, "the rotary table"


def test_mla_holds_its_up_projections_twice_and_divides_them() -> None:
    deepseek = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)
    assert deepseek.weights.copied_bytes == 61 * 512 * 128 * 256 * 2
    one, eight = (
        memory.card(
            deepseek, Setting(H100, "NVIDIA H200", size, version="0.26.0", utilization=0.9)
        ).weights_bytes
        - memory.weights_per_gpu(deepseek, size)
        for size in (1, 8)
    )
    assert one - eight == deepseek.weights.copied_bytes * 7 // 8


def test_a_window_keeps_the_tokens_of_two_batches() -> None:
    """Measured: 32.74 requests of 32768 tokens in 49.17 GiB, where one batch under way would make it 49."""
    windowed = configs.facts(configs.MISTRAL_7B, 14_483_464_192)
    both, one = (
        memory.card(
            windowed,
            Setting(
                H100,
                "NVIDIA H100",
                utilization=0.8,
                max_num_batched_tokens=4096,
                version="0.26.0",
                async_scheduling=each,
            ),
        )
        for each in (True, False)
    )
    assert both.concurrency(windowed, 32_768) < 32.9
    assert one.concurrency(windowed, 32_768) > 48
