"""Text for terminals: aligned, within its columns, nothing that could drive a terminal, '-' for what nobody knows."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserved.api.types import RolloutView
from gpuserved.host.logtail import clean

UNKNOWN = "-"
_GIB = 1024**3


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()
) -> list[str]:
    """Aligned lines.

    :param right: columns aligned to the right.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(widths[n]) if n in right else cell.ljust(widths[n]) for n, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def gpu_list(gpus: Sequence[int]) -> str:
    """`0-3,6`; '-' on the CPU."""
    if not gpus:
        return UNKNOWN
    runs: list[list[int]] = []
    for index in sorted(gpus):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def number(value: float | None) -> str:
    """A count, or '-'."""
    return UNKNOWN if value is None else f"{value:.0f}"


def unit(value: float | None, suffix: str) -> str:
    """`12%`, or '-'."""
    return UNKNOWN if value is None else f"{value:.0f}{suffix}"


def gib(value: int | None) -> str:
    """Bytes as GiB."""
    return UNKNOWN if value is None else f"{value / _GIB:.1f}"


def age(seconds: float) -> str:
    """`12s`, `5m`, `3h10m`, `2d4h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole < 600 else f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def cut(text: str, room: int) -> str:
    """At most `room` characters."""
    return text if len(text) <= room else text[: max(0, room - 3)] + "..."


def cut_middle(text: str, room: int) -> str:
    """At most `room` characters, keeping both ends: a replica's number is at the end of its id."""
    if len(text) <= room:
        return text
    tail = (room - 2) // 2
    return f"{text[: room - 2 - tail]}..{text[len(text) - tail :]}"


def wrapped(text: str, columns: int, indent: str) -> list[str]:
    """Lines of at most `columns`."""
    if len(text) <= columns:
        return [text]
    import textwrap

    return textwrap.wrap(text, columns, subsequent_indent=indent)


def last_state(line: str) -> str:
    """A log line as a terminal would show it in the end: the last state of a progress bar, without control bytes."""
    return clean(line.rstrip("\r").rsplit("\r", 1)[-1])


_OUTCOMES = {
    "done": "rolling change done",
    "rolled_back": "rolled back to what ran before",
    "stopped": "rolling change stopped",
}


def rollout_line(roll: RolloutView) -> str:
    """How far a rolling change is, or how it ended."""
    if roll.outcome is not None:
        head = _OUTCOMES.get(roll.outcome, roll.outcome)
    else:
        what = "rolling back" if roll.direction == "back" else "rolling change"
        head = f"{what}, {roll.done} of {roll.total} replaced"
        head += f", now {roll.current}" if roll.current else ""
    return f"{roll.profile}: {head}" + (f": {roll.reason}" if roll.reason else "")
