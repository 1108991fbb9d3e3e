"""What a long run leaves behind: a report in docs/runs, a table in a page."""

from __future__ import annotations

from pathlib import Path


def keep(path: Path | None, text: str) -> None:
    """Write a report where the run was told to; None: it was told nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def put_between(page: Path, marks: tuple[str, str], block: str) -> None:
    """Put `block` between two marks of a page, each on a line of its own.

    :raises ValueError: the page has no such lines.
    """
    text = page.read_text("utf-8")
    begin, end = (f"{mark}\n" for mark in marks)
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise ValueError(f"{page} has no lines {marks[0]} and {marks[1]}")
    page.write_text(f"{before}{begin}{block}\n{end}{after}", "utf-8")
