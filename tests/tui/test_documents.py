from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def keys_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keys_table", ROOT / "scripts" / "keys_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/tui.md"])
def test_the_documents_list_the_keys_of_the_table(name: str) -> None:
    module = keys_table()
    text = (ROOT / name).read_text("utf-8")
    table = module.PAGES[name]()
    assert table in text, "run `make docs`"
    assert module.written(text, table) == text
