# ruff: noqa: INP001 - a program of its own, not part of a package
"""Write the table of keys into docs/tui.md and README.md from the table of actions."""

from __future__ import annotations

from pathlib import Path

from gpuserve_tui.model.actions import ACTIONS, GROUPS, Action, key_name

ROOT = Path(__file__).resolve().parents[1]
_MARKS = ("<!-- keys: written by make docs -->", "<!-- /keys -->")


def keys_of(action: Action) -> str:
    """As code, one after the other."""
    return " ".join(f"`{key_name(key)}`" for key in action.keys)


def full() -> str:
    """One row for each action."""
    rows = ["| keys | action | does | name in tui.toml |", "| --- | --- | --- | --- |"]
    for group in GROUPS:
        rows += [
            f"| {keys_of(each)} | {each.label} | {each.help} | `{each.id}` |"
            for each in ACTIONS
            if each.group == group
        ]
    return "\n".join(rows)


def brief() -> str:
    """One row for each group."""
    rows = ["| | keys |", "| --- | --- |"]
    for group in GROUPS:
        items = [
            f"`{key_name(each.keys[0])}` {each.label.lower()}" for each in ACTIONS if each.group == group
        ]
        rows.append(f"| {group} | {', '.join(items)} |")
    return "\n".join(rows)


def written(text: str, table: str) -> str:
    """`text` with `table` between its marks.

    :raises ValueError: the marks are not there, each on a line of its own.
    """
    begin, end = (f"{mark}\n" for mark in _MARKS)
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.rpartition(f"\n{end}")
    if not found or not found_too:
        raise ValueError(f"no lines {_MARKS[0]} and {_MARKS[1]}")
    return f"{before}{begin}{table}\n{end}{after}"


PAGES = {"README.md": brief, "docs/tui.md": full}

if __name__ == "__main__":
    for name, make in PAGES.items():
        page = ROOT / name
        page.write_text(written(page.read_text("utf-8"), make()), encoding="utf-8")
