"""Logs: what keys do to one wherever it is shown, and the screen of one log, or of all of them as one."""

from __future__ import annotations

from functools import partial

from textual.app import ComposeResult

from gpuserve_tui.feed.logs import ALL, LogState, Page
from gpuserve_tui.model.filters import BadFilter
from gpuserve_tui.model.logbuffer import LEVELS, Lines, log_line
from gpuserve_tui.model.state import View
from gpuserve_tui.screens.pane import Commands, Pane, Session
from gpuserve_tui.view.bars import ruler
from gpuserve_tui.widgets.lines import Line, LineView
from gpuserve_tui.widgets.logview import LogView
from gpuserved.api.inspect import LogPage


class LogPane(Pane):
    """A screen that shows a log."""

    log_view: LogView

    @property
    def commands(self) -> Commands:
        return {**super().commands, "follow": self._follow, "level": self._next_level}

    def flush(self) -> None:
        """Show what has been written. Whatever the rate, this is done a few times a second."""
        grown = self.session.log.take(hold=not self.log_view.following)
        if grown is None:
            return
        self.log_view.grown(grown.trimmed, grown.added)
        if grown.thin:
            self._fetch_older()
        self.draw_log_title()

    def draw_log_title(self) -> None:
        """The log's figures alone, where they are all that has changed."""

    def move(self, rows: int) -> None:
        """Beyond the first line of a log: older lines from the files."""
        view = self.focused_view
        if isinstance(view, LogView):
            self._moved(beyond=view.move(rows))
        else:
            super().move(rows)

    def to_edge(self, *, end: bool) -> None:
        """Again at the first line of a log: what is before it."""
        view = self.focused_view
        if isinstance(view, LogView):
            self._moved(beyond=view.to_edge(end=end))
        else:
            super().to_edge(end=end)

    def _moved(self, *, beyond: bool) -> None:
        if beyond and self.session.log.at_beginning:
            self.say("this is the beginning of what is kept")
        elif beyond:
            self._fetch_older()
        self.draw_log_title()

    def _fetch_older(self) -> None:
        call = self.session.log.older()
        if call is not None:
            self.call(call, self._got_older, self.session.log.not_read)

    def _got_older(self, page: Page) -> None:
        self.log_view.prepended(self.session.log.prepend(page))
        self.draw_log_title()

    def _follow(self) -> None:
        self.log_view.follow(on=not self.log_view.following)
        self.redraw()

    def _next_level(self) -> None:
        self.session.log.next_level()
        self.log_view.changed()
        self.redraw()
        level = self.session.log.state.level
        self.say(f"least level: {LEVELS[level]}" if level else "all levels")


class LogsPane(LogPane):
    """One log, or all of them as one."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="logs")
        self.title = Line(id="log-title")
        self.log_view = LogView(session.look, session.log.lines, id="log-view")

    def compose(self) -> ComposeResult:
        yield self.title
        yield self.log_view

    @property
    def commands(self) -> Commands:
        return {
            **super().commands,
            "wrap": self.redrawn(self.log_view.toggle_wrap),
            "timestamps": self.redrawn(self.log_view.toggle_times),
            "numbers": self.redrawn(self.log_view.toggle_numbers),
            "log_filter": self._ask_only,
            "next_match": partial(self._match, forward=True),
            "previous_match": partial(self._match, forward=False),
            "source_next": partial(self._neighbour, 1),
            "source_previous": partial(self._neighbour, -1),
        }

    @property
    def views(self) -> list[LineView]:
        return [self.log_view]

    def shown(self) -> None:
        """Where no log has been chosen yet: all of them."""
        if self.session.log.state.source is None:
            self.post_message(self.LogWanted(ALL))

    def draw(self, view: View) -> None:
        """The title; the lines draw themselves as they come."""
        del view
        log = self.session.log
        name = ALL if log.state.source is None else log.state.source or "daemon"
        text = log_title(log.lines, self.log_view, log.state)
        flags = f"{'wrap  ' if self.log_view.wrap else ''}{text}"
        self.write(self.title, ruler(f"LOG {name} (<>)", flags, self.size.width, self.log_view.glyphs))

    def draw_log_title(self) -> None:
        if self.state.pane == "logs" and not self.state.arrangement.frozen:
            self.draw(self.state.view)

    def _neighbour(self, by: int) -> None:
        source = self.session.log.neighbour(by, self.state.replica_names)
        self.post_message(self.LogWanted(source))

    # --- search and filter

    def ask_filter(self) -> None:
        """On this screen `/` searches."""
        self.post_message(self.PromptWanted("search", self.session.log.state.searched))

    def _ask_only(self) -> None:
        self.post_message(self.PromptWanted("only", self.session.log.state.only))

    def entered(self, purpose: str, text: str) -> None:
        """What to search, or which lines to show; a bad filter changes nothing."""
        try:
            if purpose == "search":
                self._search(text)
            elif purpose == "only":
                self._show_only(text)
            else:
                super().entered(purpose, text)
        except BadFilter as error:
            self.say(str(error), "error")
        self.redraw()

    def back(self) -> None:
        """Clear search and filter of the log, or else what other screens clear."""
        if self.session.log.state.searched or self.session.log.state.only:
            self._search("")
            self._show_only("")
            self.redraw()
        else:
            super().back()

    def _show_only(self, text: str) -> None:
        self.session.log.show_only(text)
        self.log_view.changed()

    def _search(self, text: str) -> None:
        """Highlight what matches, and go to the last match."""
        wanted = self.session.log.search_for(text)
        self.log_view.highlight(wanted.matches if wanted.tests else None)
        if text and not self.log_view.match(forward=False):
            self.say(f"no match in {len(self.session.log.lines.shown):,} lines; N searches the files")

    def _match(self, *, forward: bool) -> None:
        """To the next match; before the first one, the files are searched."""
        if not self.session.log.state.searched:
            self.say("nothing is searched for: / first", "warning")
        elif self.log_view.match(forward=forward):
            return
        elif forward:
            self.say("no match after this one")
        else:
            self._search_files()

    def _search_files(self) -> None:
        log = self.session.log
        call = log.find_older()
        if call is None:
            self.say("choose one log to search its files: < or >", "warning")
            return
        self.say(f"searching {log.state.source or 'the daemon'}'s files for {log.state.searched.strip('/')}")
        self.call(call, self._found)

    def _found(self, page: LogPage) -> None:
        searched = self.session.log.state.searched
        if not page.lines:
            more = "; the search stopped at its limit" if page.before else ""
            self.say(f"no older line matches {searched}{more}")
            return
        lines = [log_line("", raw, None).text for raw in page.lines]
        self.read(f"{len(lines)} older lines match {searched}", lines)


def log_title(lines: Lines, view: LogView, state: LogState) -> str:
    """State of the log: search and filter in force, following or not, level, how many lines, how many that were not shown."""
    parts = [f"/{state.searched}"] if state.searched else []
    parts += [f"&{state.only}"] if state.only else []
    note = "  ".join([*parts, ""])
    following = "FOLLOW"
    if not view.following:
        following = f"{view.glyphs.down} {view.unseen} new (G)" if view.unseen else "PAUSED (G)"
    level = f"level>={LEVELS[state.level]}  " if state.level else ""
    return f"{note}{following}  {level}{len(lines.shown):,} lines, {lines.dropped:,} dropped"
