"""The first Python traceback of each process in an engine's log."""

from __future__ import annotations

import re
from collections.abc import Sequence

LINES_MAX = 40
"""Of one traceback: its head, and the innermost frames with the exception."""
_HEAD = 4
_PREFIX = re.compile(
    r"^(?:\d+:)?\((?P<process>[\w.-]+) pid=\d+\) ?"
    r"(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_BEGIN = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?::|$)")


def first_tracebacks(lines: Sequence[str]) -> dict[str, list[str]]:
    """Process name (empty: lines without one) -> its first traceback, without the log's prefixes.

    Processes write into one stream, so their lines may alternate: each is followed by its own name.
    """
    found: dict[str, list[str]] = {}
    open_: set[str] = set()
    for line in lines:
        process, text = _split(line)
        if process in open_:
            found[process].append(text)
            if _EXCEPTION.match(text):
                open_.discard(process)
        elif text.strip() == _BEGIN and process not in found:
            found[process] = [text.strip()]
            open_.add(process)
    return {process: _cut(each) for process, each in found.items()}


def _split(line: str) -> tuple[str, str]:
    found = _PREFIX.match(line)
    return ("", line.rstrip()) if found is None else (found["process"], line[found.end() :].rstrip())


def _cut(lines: list[str]) -> list[str]:
    if len(lines) <= LINES_MAX:
        return lines
    left_out = len(lines) - LINES_MAX + 1
    return [*lines[:_HEAD], f"  ... {left_out} lines left out ...", *lines[-(LINES_MAX - _HEAD - 1) :]]
