# ruff: noqa: INP001 - a program of its own, not part of a package
"""Write profiles/profile.schema.json from the loader's tables and what docs/profiles.md says of each key. Usage: make docs"""

from __future__ import annotations

import json
import re
from pathlib import Path

from gpuserved.config.schema import profile_schema

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "profiles" / "profile.schema.json"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+) \|$")


def meanings(page: str) -> dict[str, dict[str, str]]:
    """What the tables of the page say of each key, by the heading above; the top level is ""."""
    found: dict[str, dict[str, str]] = {}
    table = ""
    for line in page.splitlines():
        if line.startswith("## "):
            table = {"Top level": ""}.get(line[3:], line[3:].strip("[]"))
        row = ROW.match(line)
        if row:
            text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", row[3])
            found.setdefault(table, {})[row[1]] = f"{text} (default: {row[2]})".replace("`", "")
    return found


def schema() -> str:
    """The file's text."""
    page = (ROOT / "docs" / "profiles.md").read_text()
    return json.dumps(profile_schema(meanings(page)), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema())
