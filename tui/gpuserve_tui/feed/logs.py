"""The log on the screen: the thread that follows it, its lines in their order, and the pages before them.

Whoever draws it reads `LogReader.lines` and `LogReader.state`. Nothing of Textual is imported here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuserve_tui.feed.client import Client
from gpuserve_tui.feed.events import BACKOFF_MAX_S, BACKOFF_S
from gpuserve_tui.model.filters import Filter, parse
from gpuserve_tui.model.logbuffer import LEVELS, Lines, LogBuffer, LogLine, log_line
from gpuserve_tui.model.logpast import Past, Trail, fetch
from gpuserved.api.errors import NotFound
from gpuserved.api.inspect import LogBatch, LogPage

ALL = "all"
DAEMON = ""
FIRST_LINES = 300
PAGE_LINES = 500
FOUND_LINES = 200
OPENING_S = 1.0
"""Every log is waited for so long, so that their first lines come in order."""
BATCHES_KEPT = 400
"""Log batches that wait for the screen: some minute of one source. Beyond, the oldest are counted as dropped."""


class LogTail:
    """Follows some logs on a thread. The screen takes what has come at its own pace."""

    def __init__(
        self, client: Client, names: Sequence[str], lines: int, places: Mapping[str, str] | None = None
    ) -> None:
        """:param places: logs that go on at a cursor, instead of beginning with their last `lines`."""
        self._client = client
        self._names = list(names)
        self._lines = lines
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._batches: deque[LogBatch] = deque()
        self._overflow = 0
        self._places = dict(places or {})
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def take(self) -> tuple[list[LogBatch], int]:
        """What has come, and how many lines came and were too many to keep."""
        with self._lock:
            batches, self._batches = list(self._batches), deque()
            overflow, self._overflow = self._overflow, 0
        return batches, overflow

    @property
    def places(self) -> dict[str, str]:
        """Where each log that was taken goes on."""
        with self._lock:
            return dict(self._places)

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        wait_s = BACKOFF_S
        while not self._closed.is_set():
            began = time.monotonic()
            with contextlib.suppress(
                Exception
            ):  # the feed says that the daemon is gone, or what else is wrong
                self._follow()
            wait_s = BACKOFF_S if time.monotonic() - began > BACKOFF_MAX_S else min(wait_s * 2, BACKOFF_MAX_S)
            self._closed.wait(wait_s)

    def _follow(self) -> None:
        for batch in self._client.follow_logs(self._names, lines=self._lines, after=self.places):
            if self._closed.is_set():
                return
            self._keep(batch)

    def _keep(self, batch: LogBatch) -> None:
        with self._lock:
            self._batches.append(batch)
            if batch.after is not None:
                self._places[batch.source] = batch.after
            while len(self._batches) > BATCHES_KEPT:
                gone = self._batches.popleft()
                self._overflow += len(gone.lines) + gone.dropped


@dataclass(frozen=True)
class LogState:
    """Which log is shown, and what of it."""

    source: str | None = None
    """A replica's id, ALL or DAEMON; None: none yet."""
    level: int = 0
    """The least one shown, an index of LEVELS."""
    only: str = ""
    """The filter that lines must pass."""
    searched: str = ""


@dataclass(frozen=True)
class Grown:
    """What came to the lines at their end."""

    trimmed: int
    """Shown lines that fell off the beginning."""
    added: int
    """Lines that are new to a reader, shown or counted."""
    thin: bool
    """The logs of all replicas have just begun, and fill no screen: the page before them is wanted."""


@dataclass(frozen=True)
class Page:
    """Lines of the past, and the place in the files that they were read from."""

    past: Past
    lines: Sequence[LogLine]


class LogReader:
    """One buffer, the stream that fills it, and what is shown of it."""

    def __init__(self, client: Client, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._monotonic = monotonic
        self._buffer = LogBuffer()
        self._state = LogState()
        self._tail: LogTail | None = None
        self._names: list[str] = []
        self._trail = Trail()
        self._waiting: list[LogBatch] = []
        """Batches that came before every log had sent its first."""
        self._open_by = 0.0
        self._fetching = False

    @property
    def lines(self) -> Lines:
        return self._buffer

    @property
    def state(self) -> LogState:
        """Which log, and what of it."""
        return self._state

    @property
    def at_beginning(self) -> bool:
        """Nothing is kept from before the first line."""
        return self._trail.past.done

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()

    # --- which log

    def watch(self, source: str, replicas: Sequence[str]) -> bool:
        """Show this log from now on.

        :param replicas: whose logs ALL means now.
        :returns: False: that is what is shown already.
        """
        names = list(replicas) if source == ALL else [source]
        other = source != self._state.source
        if not other and names == self._names:
            return False
        known = self._tail.places if self._tail is not None and not other else {}
        if other:
            self._buffer.clear(merged=source == ALL)
            self._trail, self._waiting = Trail(), []
        self.close()
        self._state, self._names = replace(self._state, source=source), names
        lines = FIRST_LINES if source != ALL else max(5, FIRST_LINES // max(1, len(names)))
        places = {name: place for name, place in known.items() if name in names}
        self._tail = LogTail(self._client, names, lines, places) if names else None
        self._open_by = self._monotonic() + OPENING_S
        return True

    def reload(self, replicas: Sequence[str]) -> None:
        """From the end again: what is written now was left out while somebody read the past."""
        source = self._state.source
        if source is not None:
            self._state = replace(self._state, source=None)
            self.watch(source, replicas)

    def neighbour(self, by: int, replicas: Sequence[str]) -> str:
        """The log that is `by` places from this one, among all as one, the daemon's and each replica's."""
        sources = [ALL, DAEMON, *replicas]
        at = sources.index(self._state.source) if self._state.source in sources else 0
        return sources[(at + by) % len(sources)]

    # --- what of it

    def next_level(self) -> None:
        """All, INFO, WARNING, ERROR, all."""
        self._state = replace(self._state, level=(self._state.level + 1) % len(LEVELS))
        self._filter()

    def show_only(self, text: str) -> None:
        """Show only what matches.

        :raises BadFilter: the text is none; nothing has changed.
        """
        parse(text)
        self._state = replace(self._state, only=text)
        self._filter()

    def search_for(self, text: str) -> Filter:
        """What to highlight from now on.

        :raises BadFilter: the text is none; nothing has changed.
        """
        wanted = parse(text)
        self._state = replace(self._state, searched=text)
        return wanted

    def _filter(self) -> None:
        wanted, level = parse(self._state.only), self._state.level

        def test(line: LogLine) -> bool:
            # A line that states no level may belong to the traceback above it: it is never hidden for its level.
            return (line.level is None or line.level >= level) and wanted.matches(line.text)

        self._buffer.filter(test if level or wanted.tests else None)

    # --- what is written

    def take(self, *, hold: bool) -> Grown | None:
        """Take what has come; None: nothing, or not yet in order.

        :param hold: somebody reads: no line is pulled away.
        """
        if self._tail is None:
            return None
        batches, overflow = self._tail.take()
        batches = [*self._waiting, *batches]
        fresh: dict[str, LogBatch] = {}
        for batch in batches:
            if not self._trail.began(batch.source):
                fresh.setdefault(batch.source, batch)
        missing = [name for name in self._names if not self._trail.began(name) and name not in fresh]
        if fresh and missing and self._monotonic() < self._open_by:
            self._waiting = batches
            return None
        self._waiting = []
        if not batches and not overflow:
            return None
        first = {id(batch) for batch in fresh.values()}
        opening = sorted(fresh.values(), key=lambda batch: self._rank(batch.source))
        return self._add(opening, [batch for batch in batches if id(batch) not in first], overflow, hold=hold)

    def _rank(self, source: str) -> int:
        return self._names.index(source) if source in self._names else len(self._names)

    def _add(
        self, opening: Sequence[LogBatch], batches: Sequence[LogBatch], overflow: int, *, hold: bool
    ) -> Grown:
        buffer, now = self._buffer, self._clock()
        shown, received, trimmed, oldest = len(buffer.shown), buffer.received, 0, buffer.first
        if opening:
            lines = self._trail.open(buffer.end, opening, now)
            trimmed += buffer.append(lines, sum(batch.dropped for batch in opening), hold=hold)
        trimmed += buffer.append((), overflow, hold=hold) if overflow else 0
        for batch in batches:
            self._trail.add(buffer.end, batch)
            lines = [log_line(batch.source, raw, batch.at) for raw in batch.lines]
            trimmed += buffer.append(lines, batch.dropped, hold=hold)
        if buffer.first != oldest:
            self._trail.cut(buffer.first, now)
        added = buffer.received - received if buffer.detached else len(buffer.shown) - shown + trimmed
        thin = bool(opening) and self._state.source == ALL and len(buffer) < FIRST_LINES
        return Grown(trimmed, added, thin)

    # --- what was written before

    def older(self) -> Callable[[], Page] | None:
        """The call that reads the page before the first line: of one log, or of all in the order of their times.

        It goes on a thread, and ends with `prepend` or `not_read`. None: one is under way, or there is no such page.
        """
        past = self._trail.past
        if self._fetching or past.done:
            return None
        self._fetching = True
        return lambda: Page(past, fetch(past, PAGE_LINES, self._read))

    def _read(self, source: str, before: str, lines: int) -> LogPage:
        try:
            return self._client.log_page(source, before=before, lines=lines)
        except NotFound:  # removed meanwhile, and its past with it
            return LogPage(lines=[])

    def not_read(self) -> None:
        self._fetching = False

    def prepend(self, page: Page) -> int:
        """Put a page that was read before the first line.

        :returns: how many shown lines that adds; 0 where another log is shown by now, or another place in it.
        """
        self._fetching = False
        if page.past is not self._trail.past:
            return 0
        added = self._buffer.prepend(page.lines)
        self._trail.page(self._buffer.first)
        return added

    def find_older(self) -> Callable[[], LogPage] | None:
        """The call that searches the files of the one log that is shown; None: it is not one log."""
        source = self._state.source
        if source is None or source == ALL:
            return None
        before, text = self._trail.past.cursor(source), self._state.searched.strip("/")
        return lambda: self._client.log_page(source, before=before, lines=FOUND_LINES, match=text)
