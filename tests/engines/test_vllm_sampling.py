"""What a request gets that says nothing of sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.cli.main import main
from gpuserved.engines.base import Sampling
from gpuserved.engines.vllm.sampling import sampling

FILE = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "do_sample": True,
    "eos_token_id": [1, 2],
}


def of(folder: Path, **flags: Any) -> Sampling:
    return sampling(configs.profile(flags=flags), folder)


def write(folder: Path, **found: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(found))
    return folder


def test_the_models_own_without_what_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, **FILE)
    assert dict(of(folder).defaults) == {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    assert of(folder, generation_config="auto") == of(folder)
    assert of(folder, generation_config="vllm") == Sampling()


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", **FILE)
    other = write(tmp_path / "other", min_p=0.1, max_new_tokens=64)
    assert dict(of(folder, override_generation_config={"temperature": 0.2, "min_p": 0.05}).defaults) == {
        "temperature": 0.2, "top_p": 0.9, "top_k": 50, "min_p": 0.05,
    }  # fmt: skip
    assert of(folder, generation_config=str(other)) == Sampling((("max_tokens", 64), ("min_p", 0.1)), 64)
    assert dict(of(folder, generation_config="vllm", override_generation_config={"top_k": 5}).defaults) == {
        "top_k": 5
    }


def test_a_length_in_the_models_file_is_a_default_and_in_the_flags_a_cap(tmp_path: Path) -> None:
    folder = write(tmp_path, max_new_tokens=2048)
    assert of(folder) == Sampling((("max_tokens", 2048),), None)
    assert of(folder, override_generation_config={"max_new_tokens": 100}) == Sampling(
        (("max_tokens", 100),), 100
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"temperature": "hot"}', '{"temperature": true}', '{"top_p": null}']
)
def test_a_file_without_sense_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert of(tmp_path) == Sampling()
    assert sampling(configs.profile(), None) == Sampling()


def test_the_plan_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSERVE_ROOT", str(tmp_path / "root"))
    model = write(configs.write_model(tmp_path / "model", configs.LLAMA_8B, 16_060_522_496), **FILE)
    inventory = configs.write_inventory(tmp_path / "gpus.json", 1, 80)
    profile = tmp_path / "p.toml"
    profile.write_text(
        f'model = "{model}"\nserved_name = "p"\nmax_model_len = 4096\n[vllm]\noverride_generation_config = {{ max_new_tokens = 512 }}\n'
    )
    assert main(["plan", str(profile), "--inventory", str(inventory)]) == 0
    text = capsys.readouterr().out
    assert (
        "sampling of requests that set nothing: max_tokens 512, temperature 0.6, top_k 50, top_p 0.9" in text
    )
    assert "no answer is longer than 512 tokens: override_generation_config sets max_new_tokens" in text
    assert main(["plan", str(profile), "--inventory", str(inventory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sampling"] == {"max_tokens": 512, "temperature": 0.6, "top_k": 50, "top_p": 0.9}
    assert found["answer_cap_tokens"] == 512
