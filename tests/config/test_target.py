from __future__ import annotations

from pathlib import Path

import pytest

from gpuserved.api.errors import GpuserveError, Invalid, NotFound
from gpuserved.config.profile import load_profile
from gpuserved.config.target import profile_folders, resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.toml").write_text('model = "a/b"\n', "utf-8")
    return tmp_path


def test_a_path_is_a_profile(folder: Path) -> None:
    target = resolve("profiles/mine.toml", [])
    assert (target.name, target.source) == ("mine", str(folder / "profiles" / "mine.toml"))


def test_a_name_is_looked_up_in_order(folder: Path) -> None:
    config = folder / "config"
    (config / "profiles").mkdir(parents=True)
    (config / "profiles" / "mine.toml").write_text('model = "c/d"\n', "utf-8")
    (config / "profiles" / "other.toml").write_text('model = "c/d"\n', "utf-8")
    folders = profile_folders(config, folder)
    assert resolve("mine", folders).text == 'model = "a/b"\n'
    assert resolve("other", folders).text == 'model = "c/d"\n'
    assert resolve("demo", folders).name == "demo"  # comes with gpuserve


def test_a_model_folder_is_a_quick_start(folder: Path) -> None:
    model = folder / "My Model"
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    target = resolve(str(model), [])
    profile = load_profile(target.text, target.source, target.name)
    assert (profile.name, profile.model, profile.served_name) == ("my-model", str(model), "My-Model")
    assert (profile.engine.value, profile.replicas) == ("vllm", None)


def test_a_hub_id_is_a_quick_start(folder: Path) -> None:
    target = resolve("Qwen/Qwen3-0.6B", [], engine="sim")
    profile = load_profile(target.text, target.source, target.name)
    assert (profile.name, profile.model, profile.engine.value) == ("qwen3-0.6b", "Qwen/Qwen3-0.6B", "sim")


def test_a_path_with_odd_characters_survives_as_toml(folder: Path) -> None:
    model = folder / 'a"b\\u0041\tc'
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    target = resolve(str(model), [])
    assert load_profile(target.text, target.source, target.name).model == str(model)


@pytest.mark.parametrize(
    ("written", "kind", "says"),
    [
        ("nothere.toml", NotFound, "no such file"),
        ("./nothere", NotFound, "no such file or folder"),
        ("/nothere/at/all", NotFound, "no such file or folder"),
        ("a/b/c", NotFound, "hub id has the form OWNER/NAME"),
        ("mein", NotFound, "did you mean mine"),
        ("zzzzzz", NotFound, "known profiles: mine"),
        ("profiles", Invalid, "without config.json"),
        ("notes.txt", Invalid, "expected a profile"),
        ("Upper.toml", Invalid, "cannot be a profile's name"),
        ("binary.toml", Invalid, "binary.toml:2: not UTF-8"),
    ],
)
def test_what_is_nothing_says_so(folder: Path, written: str, kind: type[GpuserveError], says: str) -> None:
    (folder / "notes.txt").write_text("x", "utf-8")
    (folder / "Upper.toml").write_text('model = "a/b"\n', "utf-8")
    (folder / "binary.toml").write_bytes(b"a = 1\n\xff\xfe\n")
    with pytest.raises(kind) as refused:
        resolve(written, [folder / "profiles"])
    assert says in f"{refused.value.message} {refused.value.hint}"


def test_an_engine_cannot_be_forced_on_a_profile(folder: Path) -> None:
    with pytest.raises(Invalid, match="names its engine itself"):
        resolve("mine", [folder / "profiles"], engine="sim")
