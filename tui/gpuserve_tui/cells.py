"""Text in terminal cells. Data is made harmless here: one line, no control bytes, never markup."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

UNKNOWN = "-"
"""A value nobody knows; never shown as 0."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Cell(NamedTuple):
    """A piece of a line: what it says, and the role that its colour follows (`theme.styles`)."""

    text: str
    role: str = ""


class Glyphs(NamedTuple):
    """The characters of bars and marks; `ASCII` for terminals and fonts without the others."""

    full: str
    other: str
    free: str
    eighths: str
    sparks: str
    cursor: str
    mark: str
    ellipsis: str
    rule: str
    dot: str
    down: str
    up: str
    alert: str
    cross: str


UNICODE = Glyphs("▓", "▒", "░", " ▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█", "▸", "◆", "…", "─", "●", "▼", "▲", "⚠", "✖")
ASCII = Glyphs("#", "+", ".", " .:-=+*##", "_.-=+*%#", ">", "*", "~", "-", "*", "v", "^", "!", "x")


def plain(text: str) -> str:
    """`text` on one line without control characters; a terminal's escape sequences are left out whole."""
    if text.isprintable():
        return text
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return "".join(c if c.isprintable() else " " if c == "\t" else "·" for c in text)


def fit(text: str, width: int, *, right: bool = False, ellipsis: str = "…") -> str:
    """`text` in exactly `width` cells, wide characters counted as two."""
    length = len(text) if text.isascii() else cell_len(text)
    if length == width:
        return text
    if length < width:
        gap = " " * (width - length)
        return gap + text if right else text + gap
    if width < 1:
        return ""
    return set_cell_size(set_cell_size(text, width - 1).rstrip() + ellipsis, width)


def fit_middle(text: str, width: int, *, ellipsis: str = "…") -> str:
    """Like `fit`, but keeps both ends: a replica's number is at the end of its id."""
    if cell_len(text) <= width or width < 5:
        return fit(text, width, ellipsis=ellipsis)
    tail = text[-(width - 1) // 2 :]
    while cell_len(tail) > width // 2:
        tail = tail[1:]
    head = set_cell_size(text, width - 1 - cell_len(tail))
    return fit(head + ellipsis + tail, width)


def count(value: float | None) -> str:
    """A count, or `-`."""
    return UNKNOWN if value is None else f"{value:.0f}"


def short(value: float | None) -> str:
    """A rate in at most four characters: `0`, `87`, `870`, `2.8k`, `18k`, `1.2M`."""
    if value is None:
        return UNKNOWN
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as whole milliseconds."""
    return UNKNOWN if seconds is None else f"{seconds * 1000:.0f}"


def gib(value: int | None) -> str:
    """Bytes as GiB with one decimal."""
    return UNKNOWN if value is None else f"{value / 1024**3:.1f}"


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


def moment(at: float, now: float) -> str:
    """The time of day; with the date where it is another day's. At most 14 characters."""
    then, today = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%m-%d %H:%M:%S", then)


def bar(share: float | None, width: int, glyphs: Glyphs) -> str:
    """A bar in eighths of a cell."""
    if share is None:
        return " " * width
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    whole, part = divmod(eighths, 8)
    text = glyphs.eighths[8] * whole + (glyphs.eighths[part] if part else "")
    return text.ljust(width)


def spark(values: Sequence[float | None], width: int, glyphs: Glyphs, top: float | None = None) -> str:
    """The last `width` values, from 0 to the largest of them or `top`; a blank where nothing is known."""
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    most = max([*known, top or 0.0])
    last = len(glyphs.sparks) - 1
    marks = [
        " " if value is None else glyphs.sparks[max(0, round(value / most * last)) if most > 0 else 0]
        for value in shown
    ]
    return "".join(marks).rjust(width)
