"""The way back through the files of one log or of several at once. Pure but for the call that reads a page.

Files do not hold when a line arrived, so several logs are put in order by the times that their lines state. A line that states none
belongs to the one before it; a log that never states any is read as if all of it were as new as possible. Within one log the order
of the file holds, whatever the clocks said.
"""

from __future__ import annotations

import calendar
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpuserve_tui.model.logbuffer import LogLine, log_line
from gpuserved.api.inspect import LogBatch, LogPage

PAGE_MIN_LINES = 50
"""Of one log among many: less would be many calls for one screen."""
ROUNDS_MAX = 200
"""Pages read for one step at most; logs of which nearly all lines are older than the others' need several."""
_STAMP = re.compile(r"(?:(\d{4})-)?\b(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")
_STAMP_WITHIN = 80
_DAY_S = 86_400.0
Read = Callable[[str, str, int], LogPage]
"""Source, cursor, how many lines: the page before the cursor."""


def stamp(text: str, now: float) -> float | None:
    """The moment that a line states, in seconds that can be compared with other lines'; None: it states none.

    :param now: Unix seconds; vLLM's times have no year, and the latest that is not to come is meant.
    """
    found = _STAMP.search(text, 0, _STAMP_WITHIN)
    if found is None:
        return None
    year, *parts = (int(part) if part else 0 for part in found.groups()[:6])
    fraction = float(f"0.{found[7]}") if found[7] else 0.0
    this = year or time.localtime(now).tm_year
    try:
        at = calendar.timegm((this, *parts)) + fraction
        # Local time against universal time: less than a day apart.
        return at if year or at <= now + _DAY_S else calendar.timegm((this - 1, *parts)) + fraction
    except ValueError:  # 02-30, or no date at all
        return None


@dataclass
class _Log:
    """One log: where its next page is, and what of the last one has not been given out."""

    before: str | None
    held: list[tuple[float, LogLine]] = field(default_factory=list)
    ceiling: float = float("inf")


class Past:
    """Of one or several logs. Holds at most a page of each."""

    def __init__(self, before: Mapping[str, str | None], now: float) -> None:
        """:param before: each log's cursor; None: there is nothing before what is shown."""
        self._logs = {source: _Log(cursor) for source, cursor in before.items()}
        self._now = now

    @property
    def done(self) -> bool:
        """Everything has been given out."""
        return not any(each.held or each.before for each in self._logs.values())

    def wanted(self) -> list[tuple[str, str]]:
        """The logs that must be read before anything older can be given out, with their cursors."""
        return [(source, log.before) for source, log in self._logs.items() if not log.held and log.before]

    def begin(self, source: str, before: str | None, lines: Sequence[str], now: float) -> None:
        """Another log, with lines of it that are at hand already."""
        self._now = now
        self._logs[source] = _Log(None)
        self.put(source, LogPage(lines=list(lines), before=before))

    def copy(self) -> Past:
        """The same place, to come back to."""
        other = Past({}, self._now)
        other._logs = {name: replace(log, held=list(log.held)) for name, log in self._logs.items()}
        return other

    def put(self, source: str, page: LogPage) -> None:
        """A page that was wanted."""
        log = self._logs[source]
        lines = [log_line(source, raw, None) for raw in page.lines]
        log.held = _timed(lines, log.ceiling, self._now)
        log.ceiling = log.held[0][0] if log.held else log.ceiling
        log.before = page.before if page.before != log.before else None

    def cursor(self, source: str) -> str | None:
        """Where the files of one log go on; None: at their beginning."""
        return self._logs[source].before if source in self._logs else None

    def take(self, count: int) -> list[LogLine]:
        """Up to `count` lines, the newest of those not given out yet, oldest first. Fewer: see `wanted`."""
        taken: list[LogLine] = []
        while len(taken) < count and not self.wanted():
            # Of equals the last log first: it comes out behind the others.
            last = max((log for log in reversed(self._logs.values()) if log.held), key=_newest, default=None)
            if last is None:
                break
            taken.append(last.held.pop()[1])
        return taken[::-1]


class Trail:
    """Where in the files the lines of a buffer are: what its oldest lines are preceded by, also after some of them went."""

    def __init__(self) -> None:
        self.past = Past({}, 0.0)
        self._ends: dict[str, str | None] = {}
        self._batches: deque[tuple[int, str, str | None]] = deque()
        """Of each later batch: the id of its first line, its log, and the cursor before it."""
        self._pages: deque[tuple[int, Past]] = deque()
        """Of each page of the past: the id of its first line, and what was before it."""

    def began(self, source: str) -> bool:
        """Whether the first batch of a log has come."""
        return source in self._ends

    def open(self, first: int, batches: Sequence[LogBatch], now: float) -> list[LogLine]:
        """The first batches of some logs; the id `first` is that of their first line.

        :returns: their lines in the order of their times, as far back as all of them are known; the rest come with the next page.
            Those of logs that come later, as they are.
        """
        lines: list[LogLine] = []
        whole = not self._ends
        for each in batches:
            self._ends[each.source] = each.after
            self.past.begin(each.source, each.before, each.lines if whole else (), now)
        if whole:
            lines = self.past.take(sum(len(each.lines) for each in batches))
        else:
            lines = [log_line(each.source, raw, each.at) for each in batches for raw in each.lines]
        self._pages.append((first, self.past.copy()))
        return lines

    def add(self, first: int, batch: LogBatch) -> None:
        """A later batch of a log that has begun."""
        self._batches.append((first, batch.source, self._ends.get(batch.source)))
        if batch.after is not None:
            self._ends[batch.source] = batch.after

    def page(self, first: int) -> None:
        """What was taken from `past` stands at the beginning now."""
        self._pages.appendleft((first, self.past.copy()))

    def cut(self, first: int, now: float) -> None:
        """The buffer begins with the id `first` now: what went is read again from the files when somebody goes back."""
        while self._batches and self._batches[0][0] < first:
            self._batches.popleft()
        while self._pages and self._pages[0][0] < first:
            self._pages.popleft()
        if self._pages and self._pages[0][0] == first:
            self.past = self._pages[0][1].copy()
            return
        before = {source: cursor for _, source, cursor in reversed(self._batches)}
        self.past = Past({**self._ends, **before}, now)


def _newest(log: _Log) -> float:
    return log.held[-1][0]


def _timed(lines: Sequence[LogLine], ceiling: float, now: float) -> list[tuple[float, LogLine]]:
    """Each line with the moment it is taken to be of; never falling from one to the next."""
    stated = [stamp(line.text, now) for line in lines]
    first = next((at for at in stated if at is not None), ceiling)
    times: list[float] = []
    for at in stated:
        times.append(at if at is not None else times[-1] if times else first)
    for n in range(len(times) - 1, -1, -1):
        times[n] = ceiling = min(times[n], ceiling)
    return list(zip(times, lines, strict=True))


def fetch(past: Past, count: int, read: Read) -> list[LogLine]:
    """Up to `count` lines before what was given out; fewer at the beginning of everything."""
    found: list[LogLine] = []
    for _ in range(ROUNDS_MAX):
        wanted = past.wanted()
        each = max(PAGE_MIN_LINES, count // max(1, len(wanted)))
        for source, cursor in wanted:
            past.put(source, read(source, cursor, each))
        found = past.take(count - len(found)) + found
        if len(found) >= count or past.done:
            break
    return found
