"""What a long run leaves behind: its report, for docs/runs."""

from __future__ import annotations

from pathlib import Path


def keep(path: Path | None, text: str) -> None:
    """Write a report where the run was told to; None: it was told nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
