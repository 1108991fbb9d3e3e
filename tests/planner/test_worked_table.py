"""KV tokens of well-known models on cards of 24 to 141 GB, worked out from published sizes, through the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.cli.main import main

GIB = configs.GIB
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "llama-8b": (configs.LLAMA_8B, 16_060_522_496),
    "mistral-7b": (configs.MISTRAL_7B, 14_483_464_192),
    "qwen3-30b-a3b": (configs.QWEN3_30B_A3B, 61_064_245_248),
    "llama-70b": (configs.LLAMA_70B, 141_107_412_992),
    "deepseek-v3": (configs.DEEPSEEK_V3, 688_586_727_753),
}
# model, GPUs of one replica, card, KV tokens; None: it does not fit.
ROWS: list[tuple[str, int, int, int | None]] = [
    ("llama-8b", 1, 24, 36_720),
    ("llama-8b", 1, 48, 191_552),
    ("llama-8b", 1, 80, 422_512),
    ("llama-8b", 1, 141, 870_416),
    ("mistral-7b", 1, 24, 48_752),
    ("mistral-7b", 1, 48, 203_584),
    ("mistral-7b", 1, 80, 434_544),
    ("mistral-7b", 1, 141, 882_448),
    ("qwen3-30b-a3b", 1, 24, None),
    ("qwen3-30b-a3b", 1, 48, None),
    ("qwen3-30b-a3b", 1, 80, 77_152),
    ("qwen3-30b-a3b", 1, 141, 674_352),
    ("qwen3-30b-a3b", 4, 24, 210_736),
    ("qwen3-30b-a3b", 2, 48, 207_648),
    ("llama-70b", 1, 24, None),
    ("llama-70b", 1, 48, None),
    ("llama-70b", 1, 80, None),
    ("llama-70b", 1, 141, None),
    ("llama-70b", 2, 80, 2_784),
    ("llama-70b", 4, 48, 66_672),
    ("llama-70b", 4, 80, 436_208),
    ("llama-70b", 2, 141, 361_104),
    ("deepseek-v3", 1, 24, None),
    ("deepseek-v3", 1, 48, None),
    ("deepseek-v3", 1, 80, None),
    ("deepseek-v3", 1, 141, None),
    ("deepseek-v3", 8, 80, None),
    ("deepseek-v3", 8, 141, 581_360),
]
AVAILABLE = 0.10
"""How far below the table the plan may be; above it never."""


class Desk:
    """Plans on paper."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def plan(self, model: str, gpus: int, card: int, settings: str) -> tuple[int, dict[str, Any]]:
        config, size = MODELS[model]
        folder = configs.write_model(self.folder / model, config, size)
        inventory = configs.write_inventory(self.folder / "gpus.json", gpus, card)
        profile = self.folder / "m.toml"
        profile.write_text(f'model = "{folder}"\nserved_name = "m"\n{settings}\n')
        code = main(["plan", str(profile), "--inventory", str(inventory), "--json"])
        answer: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return code, answer


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("GPUSERVE_ROOT", str(tmp_path / "root"))
    return Desk(tmp_path, capsys)


@pytest.mark.parametrize(("model", "size", "card", "tokens"), ROWS)
def test_a_row_is_met_within_a_tenth_and_never_exceeded(
    desk: Desk, model: str, size: int, card: int, tokens: int | None
) -> None:
    code, found = desk.plan(
        model, size, card, f'replicas = 1\ntensor_parallel_size = {size}\nmax_model_len = "auto"'
    )
    if tokens is None:
        assert (code, found["fits"]) == (4, False)
        assert found["refusal"]["code"] == "does_not_fit"
        assert "short of" in found["refusal"]["message"]
        assert "GiB" in found["refusal"]["message"]
        assert found["refusal"]["hint"]
        return
    assert (code, found["fits"]) == (0, True)
    placed = found["placements"][0]
    assert (1 - AVAILABLE) * tokens <= placed["kv_cache_tokens"] <= tokens
    items = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "cuda_graph_bytes", "non_torch_bytes", "headroom_bytes")  # fmt: skip
    assert sum(placed[item] for item in items) == int(configs.TOTALS_GIB[card] * GIB)


def test_the_trap_of_70b_on_two_80_gb_cards(desk: Desk) -> None:
    """Its weights fit, and one request of 4096 tokens does not."""
    code, found = desk.plan("llama-70b", 2, 80, "max_model_len = 4096")
    assert (code, found["refusal"]["code"]) == (4, "does_not_fit")
    assert "short of 0.2" in found["refusal"]["message"]
    assert "(2784 tokens)" in found["refusal"]["message"]
    assert any(lever["fits"] for lever in found["levers"])
    code, found = desk.plan("llama-70b", 2, 80, 'max_model_len = "auto"')
    assert code == 0
    assert found["placements"][0]["max_model_len"] == 2768
    assert "max_model_len_reduced" in [warning["code"] for warning in found["warnings"]]
    # With the utilisation in the operator's hand nothing is left over for CUDA graphs: vLLM would refuse.
    code, found = desk.plan(
        "llama-70b", 2, 80, 'max_model_len = "auto"\n[vllm]\ngpu_memory_utilization = 0.9'
    )
    assert (code, found["refusal"]["hint"]) == (4, "gpu_memory_utilization = 0.95")


@pytest.mark.parametrize(("model", "size", "card", "tokens"), ROWS)
def test_nothing_is_promised_that_an_explicit_utilisation_does_not_hold(
    desk: Desk, model: str, size: int, card: int, tokens: int | None
) -> None:
    settings = f'replicas = 1\ntensor_parallel_size = {size}\nmax_model_len = "auto"\n[vllm]\ngpu_memory_utilization = 0.9'
    _, found = desk.plan(model, size, card, settings)
    if found["fits"]:
        assert tokens is not None
        assert 0.9 * tokens <= found["placements"][0]["kv_cache_tokens"] <= tokens


def test_two_24_gb_cards_hold_five_times_the_tokens_as_one_replica(desk: Desk) -> None:
    code, found = desk.plan("llama-8b", 2, 24, "max_model_len = 8192\ntarget_concurrency = 32")
    assert code == 0
    assert [(one["gpus"], one["tensor_parallel_size"]) for one in found["placements"]] == [([0, 1], 2)]
    assert "5.2 times the tokens" in found["why"][0]
    _, few = desk.plan("llama-8b", 2, 24, "max_model_len = 8192\ntarget_concurrency = 2")
    assert [one["gpus"] for one in few["placements"]] == [[0], [1]], "replicas carry a small load as well"


def test_a_size_wider_than_needed_is_named(desk: Desk) -> None:
    _, found = desk.plan("llama-8b", 8, 80, "max_model_len = 8192\ntensor_parallel_size = 8")
    told = {warning["code"]: warning["message"] for warning in found["warnings"]}
    assert "1 is enough: 8 replicas of 1 GPU" in told["tp_wider_than_needed"]
    code, found = desk.plan("llama-8b", 8, 80, "max_model_len = 8192\ntensor_parallel_size = 6")
    assert (code, found["refusal"]["code"]) == (4, "heads_not_divisible")
    assert found["refusal"]["hint"] == "tensor_parallel_size = 4, or 8"


def test_a_length_beyond_the_models_is_refused(desk: Desk) -> None:
    code, found = desk.plan("mistral-7b", 1, 80, "max_model_len = 40000")
    assert code == 4
    assert "7232 tokens more" in found["refusal"]["message"]
