"""Figures and words as cells. What comes from a daemon is data: it becomes `Text` without markup or control bytes."""

from __future__ import annotations

from rich.text import Text

UNKNOWN = "-"
"""A value nobody knows; never shown as 0."""
GIB = 1024**3
BAR_CELLS = 10
STATE_STYLES = {
    "READY": "green",
    "STARTING": "cyan",
    "DRAINING": "yellow",
    "STOPPING": "yellow",
    "UNHEALTHY": "bold red",
    "BACKOFF": "bold yellow",
    "FAILED": "bold red",
    "STOPPED": "dim",
}
GPU_STATE_STYLES = {"OK": "", "LOST": "bold red", "QUARANTINED": "bold yellow"}


def plain(value: str) -> str:
    """`value` on one line without control characters, which a log line may hold."""
    return "".join(c if c.isprintable() else "·" for c in value)


def cell(value: object, style: str = "") -> Text:
    """Any value as a cell; None is unknown."""
    return Text(UNKNOWN if value is None else plain(str(value)), style=style, no_wrap=True, end="")


def number(value: float | None, suffix: str = "") -> Text:
    """A figure without decimals."""
    text = UNKNOWN if value is None else f"{value:.0f}{suffix}"
    return Text(text, no_wrap=True, end="")


def state(value: str) -> Text:
    """A lifecycle state; the word carries the meaning, the colour repeats it."""
    return cell(value, STATE_STYLES.get(value, ""))


def memory(used_bytes: int | None, total_bytes: int | None) -> Text:
    """A bar and `used/total` in GiB."""
    if used_bytes is None or not total_bytes:
        return cell(None)
    share = min(1.0, used_bytes / total_bytes)
    filled = round(share * BAR_CELLS)
    style = "red" if share > 0.97 else "yellow" if share > 0.9 else "green"
    bar = Text("█" * filled, style=style, no_wrap=True, end="")
    bar.append("░" * (BAR_CELLS - filled), style="dim")
    return bar.append(f" {used_bytes / GIB:.1f}/{total_bytes / GIB:.1f}", style="")


def age(seconds: float) -> str:
    """`0.4s`, `12s`, `3m20s`, `5h02m`, `3d04h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
