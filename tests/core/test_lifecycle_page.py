from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_table_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "lifecycle_table.py"))
    assert (ROOT / "docs" / "lifecycle.md").read_text() == script["page"](), "run: make docs"
