# ruff: noqa: INP001 - a program of its own, not part of a package
"""Write what is said of keys from where they are declared: profiles/profile.schema.json, the tables of docs/profiles.md and the
example of the daemon's file in README.md. Usage: make docs
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from gpuserved.config import daemon, profile
from gpuserved.config.fields import Table
from gpuserved.config.schema import default_of, profile_schema

ROOT = Path(__file__).resolve().parent.parent
_HEADER = "| key | default | meaning |\n| --- | --- | --- |\n"
_ROWS = re.compile(r"(?:\|.*\|\n)*")
_COMMENT_COLUMN = 25


def schema() -> str:
    """The file's text."""
    return json.dumps(profile_schema(), indent=2, ensure_ascii=False) + "\n"


def tables(page: str) -> str:
    """docs/profiles.md, with a row for each key below the heading of its table.

    :raises ValueError: a table has no heading, or no table of keys below it.
    """
    for table in profile.TABLES:
        begin = page.index(f"\n## {f'[{table.name}]' if table.name else 'Top level'}\n")
        begin = page.index(_HEADER, begin) + len(_HEADER)
        rows = _ROWS.match(page, begin)
        assert rows is not None
        made = "".join(f"| `{key.name}` | {default_of(table, key)} | {key.means} |\n" for key in table.keys)
        page = page[:begin] + made + page[rows.end() :]
    return page


def example(page: str) -> str:
    """README.md, with the daemon's file as it could be."""
    begin = page.index(f"```toml\n[{daemon.TABLES[0].name}]\n") + len("```toml\n")
    made = "\n\n".join(_lines(table) for table in daemon.TABLES)
    return page[:begin] + made + page[page.index("\n```\n", begin) :]


def _lines(table: Table) -> str:
    rows = [
        f"{f'{key.name} = {key.example}':<{_COMMENT_COLUMN}} # {key.means}".removesuffix(" # ").rstrip()
        for key in table.keys
    ]
    return "\n".join([f"[{table.name}]", *rows])


PAGES = {"docs/profiles.md": tables, "README.md": example}

if __name__ == "__main__":
    (ROOT / "profiles" / "profile.schema.json").write_text(schema())
    for name, written in PAGES.items():
        path = ROOT / name
        path.write_text(written(path.read_text("utf-8")), encoding="utf-8")
