"""The log lines a screen holds: a ring with a filter over it. Older lines come from the daemon's files by page."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gpuserve_tui.cells import plain

KEPT_LINES = 10_000
"""Some 3 MB of vLLM's lines."""
_TRIM = 2_000
"""Lines are dropped in blocks: one at a time would move the whole list."""
_PAGED = 2
"""With pages of the past so many times the usual number of lines; then the newest go."""
LINE_MAX_CHARS = 4_096
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_NUMBERS = {"DEBUG": 0, "INFO": 1, "WARN": 2, "WARNING": 2, "ERROR": 3, "CRITICAL": 3, "FATAL": 3}
_VLLM = re.compile(
    r"^(?:\((?P<process>[\w.-]+) pid=\d+\) )?(?P<level>[A-Z]+) (?:\d\d-\d\d )?(?P<time>\d\d:\d\d:\d\d) \[(?P<file>[^\]]*?)(?:\.py)?(?::\d+)?\] ?(?P<text>.*)$"
)


class LogLine(NamedTuple):
    """One line. `level`: an index of LEVELS; None: the line does not say."""

    source: str
    text: str
    level: int | None
    at: float | None = None
    """When the daemon read it, Unix seconds; None: it comes from a page of the past."""
    gap: bool = False
    """Not a line of the log, but a remark in its place: so many are missing here."""


def log_line(source: str, raw: str, at: float | None) -> LogLine:
    """A line as it came, made fit to show: the last state of a progress bar, no control bytes, not endless."""
    if not raw.isprintable():
        raw = plain(raw.rstrip("\r").rsplit("\r", 1)[-1].replace("\t", "    "))
    found = _LEVEL.search(raw, 0, 120)
    return LogLine(source, raw[:LINE_MAX_CHARS], _NUMBERS[found[1]] if found else None, at)


def compact(line: LogLine) -> str:
    """VLLM's prefix without what a small pane has no room for: time, level, source file, text."""
    found = _VLLM.match(line.text)
    if found is None:
        return line.text
    level = {"WARNING": "WARN"}.get(found["level"], found["level"])
    return f"{found['time']} {level:<5} {found['file']}: {found['text']}"


def when(line: LogLine) -> str:
    """The time of day that the line itself states; empty: none."""
    found = _VLLM.match(line.text)
    return found["time"] if found else ""


class Lines(Protocol):
    """A log as whoever draws it sees it."""

    @property
    def shown(self) -> Sequence[int]:
        """Ids of the lines that the filter lets through, in order."""

    @property
    def received(self) -> int:
        """Lines that were written and came, also those that found no room."""

    @property
    def dropped(self) -> int:
        """Lines that were written and never came here."""

    @property
    def detached(self) -> bool:
        """What is written now comes no longer here: somebody reads the past, and there is no room for both."""

    @property
    def merged(self) -> bool:
        """Whether lines of several logs are among them."""

    def line(self, number: int) -> LogLine:
        """The line of an id in `shown`."""


class LogBuffer:
    """Lines with ids that grow; a page of the past gets ids below the first."""

    def __init__(self, kept: int = KEPT_LINES) -> None:
        self._kept = kept
        self._lines: list[LogLine] = []
        self._first = 0
        self._test: Callable[[LogLine], bool] | None = None
        self._shown: list[int] = []
        self._dropped = 0
        self._received = 0
        self._detached = False
        self._merged = False
        self._blocks: deque[int] = deque()
        """Ids of the first lines of what came together. The oldest lines go by whole blocks: each has a place in a file."""

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def shown(self) -> Sequence[int]:
        return self._shown

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def received(self) -> int:
        return self._received

    @property
    def detached(self) -> bool:
        return self._detached

    @property
    def merged(self) -> bool:
        return self._merged

    @property
    def first(self) -> int:
        """The id of the oldest line."""
        return self._first

    @property
    def end(self) -> int:
        """The id of the next line."""
        return self._first + len(self._lines)

    def line(self, number: int) -> LogLine:
        """The line of an id in `shown`."""
        return self._lines[number - self._first]

    def clear(self, *, merged: bool = False) -> None:
        """Begin anew, with the same filter.

        :param merged: several logs come now.
        """
        self._lines.clear()
        self._shown.clear()
        self._blocks.clear()
        self._first = self._dropped = self._received = 0
        self._detached = False
        self._merged = merged

    def append(self, lines: Iterable[LogLine], dropped: int = 0, *, hold: bool = False) -> int:
        """Add what was written together; a gap is marked where it is.

        :param hold: somebody reads: rather than that the oldest lines go, nothing more is added.
        :returns: how many shown lines fell off the beginning.
        """
        if self._detached:
            self._received += sum(1 for _ in lines)
            self._dropped += dropped
            return 0
        self._blocks.append(self.end)
        if dropped:
            self._dropped += dropped
            self._add(
                LogLine(
                    "",
                    f"... {dropped:,} lines not shown: too many at once; they are in the file",
                    None,
                    None,
                    gap=True,
                )
            )
        for line in lines:
            self._received += 1
            self._add(line)
        return self._trim(hold=hold)

    def _add(self, line: LogLine) -> None:
        self._lines.append(line)
        if self._test is None or line.gap or self._test(line):
            self._shown.append(self._first + len(self._lines) - 1)

    def prepend(self, lines: Sequence[LogLine]) -> int:
        """Add a page of the past. Where that is too much, the newest lines go: they are in the file.

        :returns: how many shown lines were added before the others.
        """
        self._lines[:0] = lines
        self._first -= len(lines)
        self._blocks.appendleft(self._first)
        if len(self._lines) > self._kept * _PAGED + _TRIM:
            del self._lines[self._kept * _PAGED :]
            del self._shown[bisect_left(self._shown, self.end) :]
            self._detached = True
        test = self._test
        fresh = [self._first + n for n, line in enumerate(lines) if test is None or test(line)]
        self._shown[:0] = fresh
        return len(fresh)

    def filter(self, test: Callable[[LogLine], bool] | None) -> None:
        """Show only the lines that `test` lets through; None: all."""
        self._test = test
        numbers = range(self._first, self._first + len(self._lines))
        self._shown = [
            n for n, line in zip(numbers, self._lines, strict=True) if test is None or line.gap or test(line)
        ]

    def _trim(self, *, hold: bool) -> int:
        if len(self._lines) < self._kept + _TRIM:
            return 0
        if hold:
            self._detached = len(self._lines) >= self._kept * _PAGED
            return 0
        least = self.end - self._kept
        while self._blocks and self._blocks[0] < least:
            self._blocks.popleft()
        first = (
            self._blocks[0] if self._blocks else least
        )  # all of it came together: there is no better place
        del self._lines[: first - self._first]
        self._first = first
        gone = bisect_left(self._shown, self._first)
        del self._shown[:gone]
        return gone
