"""The profiles that ship for GPU hosts, planned on the hosts that their comments name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.cli.main import main
from gpuserved.config.profile import load_profile
from gpuserved.core.planner.model import ModelFacts
from gpuserved.planning.arrange import Inputs, Wanted, arrange
from gpuserved.planning.model_reader import ModelReader

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
QWEN3_8B = configs.QWEN3_32B | {
    "num_hidden_layers": 36, "num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 12288,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "meta-llama/Llama-3.1-8B-Instruct": (configs.LLAMA_8B, 16_060_522_496),
    "meta-llama/Llama-3.1-70B-Instruct": (configs.LLAMA_70B, 141_107_412_992),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (configs.QWEN3_30B_A3B, 61_064_245_248),
    "Qwen/Qwen3-8B": (QWEN3_8B, 16_381_470_720),
    "Qwen/Qwen3-Embedding-0.6B": (configs.QWEN3_06B, 1_191_586_304),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with the two small files of each model that a plan needs."""
    cache = tmp_path / "hub"
    for model, (config, size) in MODELS.items():
        folder = cache / ("models--" + model.replace("/", "--"))
        configs.write_model(folder / "snapshots" / COMMIT, config, size)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("GPUSERVE_ROOT", str(tmp_path / "root"))
    return cache


@pytest.fixture
def plan(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    def run(name: str, count: int, size: int) -> dict[str, Any]:
        inventory = configs.write_inventory(tmp_path / "inventory.json", count, size)
        code = main(["plan", str(PROFILES / f"{name}.toml"), "--inventory", str(inventory), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert code == (0 if found["fits"] else 4)
        return found

    return run


@pytest.mark.parametrize(
    ("name", "count", "size", "groups"),
    [
        ("llama-8b", 8, 80, [1] * 8),
        ("llama-8b", 2, 24, [1, 1]),
        ("llama-8b-lora", 4, 48, [1] * 4),
        ("llama-70b", 4, 80, [4]),
        ("llama-70b", 8, 80, [4, 4]),
        ("llama-70b", 2, 141, [2]),
        ("llama-70b", 2, 80, None),
        ("qwen3-30b-a3b", 4, 80, [1] * 4),
        ("qwen3-30b-a3b", 2, 48, [2]),
        ("qwen3-30b-a3b", 1, 48, None),
        ("two-models-chat", 4, 80, [1] * 4),
        ("two-models-embed", 4, 80, [1]),
    ],
)
def test_a_shipped_profile_fits_where_its_comment_says(
    plan: Plan, name: str, count: int, size: int, groups: list[int] | None
) -> None:
    found = plan(name, count, size)
    if groups is None:
        assert found["refusal"]["code"] == "does_not_fit"
        assert found["refusal"]["hint"]
        return
    assert [len(one["gpus"]) for one in found["placements"]] == groups
    lengths = {one["max_model_len"] for one in found["placements"]}
    assert lengths == {load_profile((PROFILES / f"{name}.toml").read_text(), name, name).max_model_len}
    assert "tp_wider_than_needed" not in {warning["code"] for warning in found["warnings"]}


def test_both_models_of_the_shared_box_are_placed_beside_each_other(hub: Path) -> None:
    wanted: dict[str, Wanted] = {}
    known: dict[str, Inputs] = {}
    for name in ("two-models-chat", "two-models-embed"):
        text = (PROFILES / f"{name}.toml").read_text()
        profile = load_profile(text, f"{name}.toml", name)
        wanted[name] = Wanted(text, name, profile)
        facts = ModelReader().facts(profile)
        assert isinstance(facts, ModelFacts)
        known[name] = Inputs(facts)
    arranged = arrange(wanted, configs.host(2, 80), {}, known)
    on = {one.replica: one.gpu_indexes for one in arranged.assignments}
    assert on == {"two-models-chat-0": (0,), "two-models-chat-1": (1,), "two-models-embed-0": (0,)}
