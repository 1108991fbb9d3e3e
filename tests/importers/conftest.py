"""LlamaFactory files and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuserved.config.profile import load_profile
from gpuserved.core.profile import Profile
from gpuserved.importers.llamafactory import source
from gpuserved.importers.llamafactory.convert import convert
from gpuserved.importers.llamafactory.draft import Draft, Note, Request
from gpuserved.importers.llamafactory.keys import Fate
from gpuserved.importers.llamafactory.render import render

Import = Callable[..., "Imported"]


class Imported:
    """One import, without the command around it."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.text = render(draft)

    @property
    def profile(self) -> Profile:
        """As our own loader reads it."""
        assert not self.refused, self.refused
        return load_profile(self.text, "p.toml", "p")

    @property
    def refused(self) -> dict[str, str]:
        return {note.key: note.reason for note in self.draft.notes if note.fate is Fate.REFUSED}

    @property
    def warned(self) -> dict[str, str]:
        return {note.key: note.reason for note in self.draft.notes if note.fate is Fate.WARNED}

    def note(self, key: str) -> Note:
        return next(note for note in self.draft.notes if note.key == key)


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports the text of a LlamaFactory file that lies in a folder of its own."""

    def run(text: str, *overrides: str, env: Mapping[str, str] | None = None, **fields: Any) -> Imported:
        path = tmp_path / "lf.yaml"
        path.write_text(text, "utf-8")
        file, values, _ = source.read(path, overrides, env or {})
        return Imported(convert(Request(file, values, env or {}, tmp_path, "p", **fields)))

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter's folder, saves/lora below the base."""

    def make(**config: Any) -> Path:
        folder = tmp_path / "saves" / "lora"
        folder.mkdir(parents=True, exist_ok=True)
        plain = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507"}
        (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
        return folder

    return make
