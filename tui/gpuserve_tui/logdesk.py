"""The log on the screen: which one, what of it, and what older pages are fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from textual.timer import Timer

from gpuserve_tui.link import LogTail
from gpuserve_tui.screens.dialogs import Reading
from gpuserve_tui.view.filters import BadFilter, parse
from gpuserve_tui.view.logbuffer import LEVELS, LogBuffer, LogLine, log_line
from gpuserve_tui.view.past import Past, Trail, fetch
from gpuserve_tui.widgets.logview import LogView
from gpuserved.api.errors import NotFound
from gpuserved.api.inspect import LogBatch, LogPage

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

ALL = "all"
DAEMON = ""
FIRST_LINES = 300
PAGE_LINES = 500
FOUND_LINES = 200
OPENING_S = 1.0
"""Every log is waited for so long, so that their first lines come in order."""
SETTLE_S = 0.3
"""The cursor must rest this long on a replica before its log is fetched."""


class LogDesk:
    """One buffer, the stream that fills it, and what is shown of it."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app
        self.buffer = LogBuffer()
        self.source: str | None = None
        """A replica's id, ALL or DAEMON; None: none yet."""
        self.level = 0
        self.only = ""
        self.searched = ""
        self._tail: LogTail | None = None
        self._names: list[str] = []
        self._trail = Trail()
        self._waiting: list[LogBatch] = []
        """Batches that came before every log had sent its first."""
        self._open_by = 0.0
        self._fetching = False
        self._timer: Timer | None = None

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """By action."""
        return {
            "follow": self.follow,
            "wrap": partial(self._toggle, "wrap"),
            "timestamps": partial(self._toggle, "times"),
            "numbers": partial(self._toggle, "numbers"),
            "level": self.next_level,
            "next_match": partial(self.match, forward=True),
            "previous_match": partial(self.match, forward=False),
            "source_next": partial(self.step, 1),
            "source_previous": partial(self.step, -1),
        }

    @property
    def view(self) -> LogView:
        """The view that is visible, or would be."""
        app = self._app
        return app.logs.view if app.pane == "logs" else app.overview.log_view

    def close(self) -> None:
        """Follow nothing."""
        if self._tail is not None:
            self._tail.close()

    def watch(self, source: str) -> None:
        """Show this log from now on."""
        names = self._app.replica_names if source == ALL else [source]
        if source == self.source and names == self._names:
            return
        known = self._tail.places if self._tail is not None and source == self.source else {}
        if source != self.source:
            self._forget()
        self.close()
        self.source, self._names = source, list(names)
        lines = FIRST_LINES if source != ALL else max(5, FIRST_LINES // max(1, len(names)))
        places = {name: place for name, place in known.items() if name in names}
        self._tail = LogTail(self._app.source, names, lines, places) if names else None
        self._open_by = self._app.monotonic() + OPENING_S
        for view in (self._app.logs.view, self._app.overview.log_view):
            view.sources = source == ALL
            view.changed()

    def _forget(self) -> None:
        self.buffer.clear()
        self._trail, self._waiting = Trail(), []

    def reload(self) -> None:
        """From the end again: what is written now was left out while somebody read the past."""
        source, self.source = self.source, None
        if source is not None:
            self.watch(source)
            self.view.follow(on=True)
            self._app.draw()

    def follow_selected(self) -> None:
        """The Overview's log is that of the selected replica, once the cursor rests there."""
        if self._timer is not None:
            self._timer.stop()
        if self._app.pane == "overview":
            self._timer = self._app.set_timer(SETTLE_S, self._follow_now)

    def _follow_now(self) -> None:
        name = self._app.overview.selected_replica
        if self._app.pane == "overview" and name is not None:
            self.watch(name)
            self._app.draw()

    def step(self, by: int) -> None:
        """The next or the previous log."""
        sources = [ALL, DAEMON, *self._app.replica_names]
        at = sources.index(self.source) if self.source in sources else 0
        self.watch(sources[(at + by) % len(sources)])
        self._app.draw()

    def flush(self) -> None:
        """Take what has come. Whatever the rate, this is done a few times a second."""
        if self._tail is None or self._app.frozen:
            return
        batches, overflow = self._tail.take()
        batches = [*self._waiting, *batches]
        fresh: dict[str, LogBatch] = {}
        for batch in batches:
            if not self._trail.began(batch.source):
                fresh.setdefault(batch.source, batch)
        missing = [name for name in self._names if not self._trail.began(name) and name not in fresh]
        if fresh and missing and self._app.monotonic() < self._open_by:
            self._waiting = batches
            return
        self._waiting = []
        if batches or overflow:
            first = {id(batch) for batch in fresh.values()}
            opening = sorted(fresh.values(), key=lambda batch: self._rank(batch.source))
            self._add(opening, [batch for batch in batches if id(batch) not in first], overflow)

    def _rank(self, source: str) -> int:
        return self._names.index(source) if source in self._names else len(self._names)

    def _add(self, opening: Sequence[LogBatch], batches: Sequence[LogBatch], overflow: int) -> None:
        buffer, hold, now = self.buffer, not self.view.following, self._app.clock()
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
        grown = len(buffer.shown) - shown + trimmed
        self.view.grown(trimmed, buffer.received - received if buffer.detached else grown)
        if opening and self.source == ALL and len(buffer) < FIRST_LINES:
            self._fetch()
        self._app.drawing.draw_log_title()

    def next_level(self) -> None:
        """All, INFO, WARNING, ERROR, all."""
        self.level = (self.level + 1) % len(LEVELS)
        self._apply()
        self._app.say(f"least level: {LEVELS[self.level]}" if self.level else "all levels")

    def set_only(self, text: str) -> None:
        """Show only what matches; a bad filter changes nothing."""
        try:
            parse(text)
        except BadFilter as error:
            self._app.say(str(error), "error")
            return
        self.only = text
        self._apply()

    def _apply(self) -> None:
        wanted = parse(self.only)
        level = self.level

        def test(line: LogLine) -> bool:
            # A line that states no level may belong to the traceback above it: it is never hidden for its level.
            return (line.level is None or line.level >= level) and wanted.matches(line.text)

        self.buffer.filter(test if level or wanted.tests else None)
        self.view.changed()
        self._app.draw()

    def search(self, text: str) -> None:
        """Highlight what matches, and go to the last match."""
        try:
            wanted = parse(text)
        except BadFilter as error:
            self._app.say(str(error), "error")
            return
        self.searched = text
        view = self.view
        view.find = wanted.matches if wanted.tests else None
        view.refresh()
        if text and not view.match(forward=False):
            self._app.say(f"no match in {len(self.buffer.shown):,} lines; N searches the files")

    def match(self, *, forward: bool) -> None:
        """To the next match; before the first one, the files are searched."""
        if not self.searched:
            self._app.say("nothing is searched for: / first", "warning")
        elif not self.view.match(forward=forward):
            if forward:
                self._app.say("no match after this one")
            else:
                self._search_files()

    def _search_files(self) -> None:
        source = self._one_source()
        if source is None:
            return
        text = self.searched.strip("/")
        call = partial(
            self._app.source.log_page,
            source,
            before=self._trail.past.cursor(source),
            lines=FOUND_LINES,
            match=text,
        )
        self._app.say(f"searching {source or 'the daemon'}'s files for {text}")
        self._app.call(call, self._found)

    def _found(self, page: LogPage) -> None:
        if not page.lines:
            more = "; the search stopped at its limit" if page.before else ""
            self._app.say(f"no older line matches {self.searched}{more}")
            return
        title = f"{len(page.lines)} older lines match {self.searched}"
        self._app.push_screen(Reading(title, [log_line("", raw, None).text for raw in page.lines]))

    def _one_source(self) -> str | None:
        if self.source is None or self.source == ALL:
            self._app.say("choose one log to search its files: < or >", "warning")
            return None
        return self.source

    def older(self) -> None:
        """Fetch the page before the first line: of one log, or of all of them in the order of their times."""
        if self._trail.past.done:
            self._app.say("this is the beginning of what is kept")
        else:
            self._fetch()

    def _fetch(self) -> None:
        past = self._trail.past
        if self._fetching or past.done:
            return
        self._fetching = True
        self._app.call(
            partial(fetch, past, PAGE_LINES, self._page), partial(self._got_older, past), self._fetched
        )

    def _page(self, source: str, before: str, lines: int) -> LogPage:
        try:
            return self._app.source.log_page(source, before=before, lines=lines)
        except NotFound:  # removed meanwhile, and its past with it
            return LogPage(lines=[])

    def _fetched(self) -> None:
        self._fetching = False

    def _got_older(self, past: Past, lines: Sequence[LogLine]) -> None:
        self._fetching = False
        if past is not self._trail.past:
            return  # another log by now, or another place in it
        added = self.buffer.prepend(lines)
        self._trail.page(self.buffer.first)
        self.view.prepended(added)
        self._app.drawing.draw_log_title()

    def follow(self) -> None:
        """Follow, or stay."""
        self.view.follow(on=not self.view.following)
        self._app.draw()

    def _toggle(self, name: str) -> None:
        view = self.view
        setattr(view, name, not getattr(view, name))
        view.changed()
        self._app.draw()
