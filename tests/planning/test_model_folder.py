from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.api.errors import Invalid
from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.profile import EngineName
from gpuserved.planning import hub, model_folder
from gpuserved.planning.model_reader import ModelReader


def write_shard(path: Path, tensors: dict[str, int], *, cut: int = 0) -> None:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in tensors.items():
        table[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(at - cut))


def read(path: Path) -> ModelFacts:
    found = model_folder.read(path)
    assert isinstance(found, ModelFacts), found
    return found


def test_real_bytes_come_from_the_index_then_from_headers(tmp_path: Path) -> None:
    configs.write_model(tmp_path, configs.LLAMA_8B)
    assert read(tmp_path).weights.source == "config"
    write_shard(tmp_path / "model-00001-of-00002.safetensors", {"a": 1000, "b": 24})
    write_shard(tmp_path / "model-00002-of-00002.safetensors", {"lm_head.weight": 76})
    found = read(tmp_path)
    assert (found.weights.total_bytes, found.weights.source) == (1100, "headers")
    configs.write_model(tmp_path, configs.LLAMA_8B, 5000)
    assert (read(tmp_path).weights.total_bytes, read(tmp_path).weights.source) == (5000, "index")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "lm_head.weight": "model-00002-of-00002.safetensors",
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (read(tmp_path).weights.total_bytes, read(tmp_path).weights.source) == (1100, "headers")


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    configs.write_model(tmp_path, configs.LLAMA_8B)
    shard = tmp_path / "model.safetensors"
    write_shard(shard, {"a": 100}, cut=1)
    if damage != "cut":
        shard.write_bytes(b"" if damage == "empty" else b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(Invalid, match=r"model\.safetensors: not a safetensors file"):
        model_folder.read(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Invalid, match=r"config\.json: not JSON"):
        model_folder.read(tmp_path)
    (tmp_path / "config.json").unlink()
    assert isinstance(model_folder.read(tmp_path), Unknown)


def test_the_same_model_has_the_same_identity_wherever_it_lies(tmp_path: Path) -> None:
    first = configs.write_model(tmp_path / "a", configs.LLAMA_8B, 5000)
    second = configs.write_model(tmp_path / "b", configs.LLAMA_8B | {"_name_or_path": "x"}, 5000)
    other = configs.write_model(tmp_path / "c", configs.LLAMA_8B, 6000)
    assert read(first).identity == read(second).identity != read(other).identity


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(hub: Path) -> Path:
    repository = hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return configs.write_model(repository / "snapshots" / COMMIT, configs.LLAMA_8B, 5000)


def test_a_hub_id_is_found_in_the_cache_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    where = snapshot(tmp_path / "hub")
    env = {"HF_HOME": str(tmp_path)}
    assert hub.find("org/tiny", env).folder == where
    assert hub.find("org/tiny", env, revision=COMMIT).folder == where
    assert hub.find("org/tiny", env, revision="v2").folder is None
    assert hub.find("org/tiny", env, revision="../../etc/passwd").folder is None
    assert hub.find("org/other", env).folder is None
    assert hub.find("org/tiny", {}, download_dir=str(tmp_path / "hub")).folder == where
    assert (
        hub.find("org/tiny", {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": "/nowhere"}).folder == where
    )
    assert hub.find(str(where), {}).folder == where


def test_what_is_not_here_says_how_to_fetch_it(tmp_path: Path) -> None:
    reader = ModelReader(environ={"HF_HOME": str(tmp_path)})
    found = reader.facts(configs.profile(model="org/tiny"))
    assert isinstance(found, Unknown)
    assert (found.code, "hf download org/tiny config.json" in found.hint) == ("model_not_here", True)
    assert isinstance(reader.facts(configs.profile(model="/no/such/folder")), Unknown)
    assert reader.facts(configs.profile(engine=EngineName.SIM)) is None


def test_facts_are_read_again_when_a_file_changes(tmp_path: Path) -> None:
    reader = ModelReader(environ={})
    profile = configs.profile(model=str(tmp_path))
    configs.write_model(tmp_path, configs.LLAMA_8B, 5000)
    first = reader.facts(profile)
    assert reader.facts(profile) is first
    configs.write_model(tmp_path, configs.LLAMA_8B, 60000)
    second = reader.facts(profile)
    assert isinstance(second, ModelFacts)
    assert second.weights.total_bytes == 60000
