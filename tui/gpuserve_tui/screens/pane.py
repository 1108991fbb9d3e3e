"""What the six screens have in common: a session, keys that move and look, calls that do not hold up the screen, changes that ask first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from textual.app import App
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message

from gpuserve_tui.cells import Cell, plain
from gpuserve_tui.feed.client import Client, carry_out, sentence
from gpuserve_tui.feed.logs import LogReader
from gpuserve_tui.model.actions import BY_ID, Selection
from gpuserve_tui.model.changes import Intent, Outcome, Question
from gpuserve_tui.model.filters import BadFilter, Filter, parse
from gpuserve_tui.model.state import View, ViewState
from gpuserve_tui.palette import Offer
from gpuserve_tui.screens.dialogs import Confirm, Reading
from gpuserve_tui.theme import Look
from gpuserve_tui.view import texts
from gpuserve_tui.view.layout import WIDE
from gpuserve_tui.widgets.lines import Line, LineView, TextLines
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.errors import GpuserveError
from gpuserved.api.inspect import ReplicaDetail

COPY_MAX_BYTES = 1024 * 1024
"""Terminals drop longer OSC 52 sequences, most of them silently."""
Commands = Mapping[str, Callable[[], None]]
"""Action -> what it does."""
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What all screens of one attachment share."""

    client: Client
    state: ViewState
    log: LogReader
    look: Look


def say(app: App[Any], text: str, severity: Any = "information") -> None:
    """A toast: the result of what the operator did, never markup."""
    app.notify(plain(text), severity=severity, markup=False, timeout=8 if severity == "error" else 4)


def copy(app: App[Any], text: str) -> None:
    """To the terminal's clipboard, by OSC 52."""
    size = len(text.encode())
    if not size:
        say(app, "there is nothing to copy", "warning")
    elif size > COPY_MAX_BYTES:
        say(app, f"{size:,} bytes are more than terminals take: x saves to a file", "warning")
    else:
        app.copy_to_clipboard(text)
        say(app, f"{size:,} bytes sent to the terminal's clipboard (tmux: set-clipboard on)")


class Called(Message, bubble=False):
    """A call to the daemon came back; it comes from another thread."""

    def __init__(self, deliver: Callable[[], None]) -> None:
        super().__init__()
        self.deliver = deliver


class Pane(Vertical):
    """One screen. It reads the view state, says what the operator wants of it, and tells the app what it cannot do itself."""

    class Redraw(Message):
        """What there is to show has changed.

        :param soon: with what else changes within a moment, instead of now.
        """

        def __init__(self, *, soon: bool = False) -> None:
            super().__init__()
            self.soon = soon

    class LogWanted(Message):
        """A log is to be shown: here, or on the Logs screen."""

        def __init__(self, source: str, *, go_there: bool = False) -> None:
            super().__init__()
            self.source = source
            self.go_there = go_there

    class PromptWanted(Message):
        """Something is to be typed; it comes back by `typed` and `entered`."""

        def __init__(self, purpose: str, value: str, hint: str = "words, !word, /regex/") -> None:
            super().__init__()
            self.purpose = purpose
            self.value = value
            self.hint = hint

    def __init__(self, session: Session, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.session = session
        self.state = session.state
        self._drawn_size = Size()
        self._gone = False

    # --- what subclasses say

    @property
    def commands(self) -> Commands:
        """What the keys do on this screen."""
        return {
            "down": partial(self.move, 1),
            "up": partial(self.move, -1),
            "page_down": partial(self._page, 1),
            "page_up": partial(self._page, -1),
            "top": partial(self.to_edge, end=False),
            "bottom": partial(self.to_edge, end=True),
            "next_table": partial(self._focus_next, 1),
            "previous_table": partial(self._focus_next, -1),
            "filter": self.ask_filter,
            "detail": self.detail,
            "logs_of": self._show_log,
            "copy": self._copy_line,
            "copy_view": self._copy_views,
        }

    @property
    def views(self) -> list[LineView]:
        """What can have the keys, in order."""
        return [view for view in self.query(LineView) if view.display]

    @property
    def selection(self) -> Selection:
        """What keys act on."""
        return Selection()

    def draw(self, view: View) -> None:
        """Show it."""

    def shown(self) -> None:
        """Becomes the visible screen."""

    def offers(self, view: View) -> Iterator[Offer]:
        """What the palette offers by name, whatever is selected."""
        del view
        yield from ()

    def carried_out(self, intent: Intent) -> None:
        """The daemon has done what was asked from here."""

    # --- drawing

    def show(self, view: View) -> None:
        """Draw it in the size that there is."""
        self._drawn_size = self.size
        self.draw(view)

    def on_resize(self) -> None:
        """The layout may come after what was drawn for it: then once more."""
        if self.display and self.size != self._drawn_size:
            self.redraw()

    @property
    def wide(self) -> bool:
        return self.size.width >= WIDE

    def write(self, widget: Line, cells: list[Cell]) -> None:
        widget.say(cells, self.session.look.roles)

    def redraw(self, *, soon: bool = False) -> None:
        self.post_message(self.Redraw(soon=soon))

    def redrawn(self, change: Callable[[], None]) -> Callable[[], None]:
        """`change`, and then another look at it."""

        def run() -> None:
            change()
            self.redraw()

        return run

    def say(self, text: str, severity: str = "information") -> None:
        say(self.app, text, severity)

    # --- moving

    @property
    def focused_view(self) -> LineView | None:
        """What has the keys."""
        focused = self.screen.focused
        if isinstance(focused, LineView):
            return focused
        views = self.views
        return views[0] if views else None

    def focus_first(self) -> None:
        views = self.views
        if views:
            views[0].focus()

    def move(self, rows: int) -> None:
        """The cursor, or the text."""
        view = self.focused_view
        if isinstance(view, (RowTable, TextLines)):
            view.move(rows)

    def to_edge(self, *, end: bool) -> None:
        view = self.focused_view
        if isinstance(view, (RowTable, TextLines)):
            view.to_edge(end=end)

    def _page(self, pages: int) -> None:
        view = self.focused_view
        if view is not None:
            self.move(pages * max(1, view.size.height - 2))

    def _focus_next(self, step: int) -> None:
        views = self.views
        if views:
            at = views.index(view) if (view := self.focused_view) in views else 0
            views[(at + step) % len(views)].focus()

    # --- looking

    def detail(self) -> None:
        """Everything about the selected row."""
        name = self.selection.replica
        if self.state.view.replica(name) is not None and name is not None:
            self.show_replica(name)

    def show_replica(self, name: str) -> None:
        self.call(partial(self.session.client.detail, name), self._show_detail)

    def _show_detail(self, found: ReplicaDetail) -> None:
        self.read(found.replica.id, texts.replica(found, self.state.view.now))

    def _show_log(self) -> None:
        """The log of the replica that is selected, or marked."""
        targets = self.state.view.situation(self.selection).targets
        if targets:
            self.show_log(targets[0].id)

    def show_log(self, replica: str) -> None:
        """The log of a replica, on the Logs screen."""
        self.post_message(self.LogWanted(replica, go_there=True))

    def read(self, title: str, lines: Sequence[Sequence[Cell] | str]) -> None:
        self.app.push_screen(Reading(self.session.look, title, lines))

    def _copy_line(self) -> None:
        view = self.focused_view
        if isinstance(view, LogView):
            copy(self.app, view.current.text if view.current else "")
        elif isinstance(view, RowTable):
            copy(self.app, view.text.splitlines()[view.position + 1].strip() if view.position >= 0 else "")

    def _copy_views(self) -> None:
        copy(self.app, "\n\n".join(view.text for view in self.views if isinstance(view, (LogView, RowTable))))

    # --- filter

    def ask_filter(self) -> None:
        hint = "words, !word, /regex/, state:failed gpu:3 model:x"
        self.post_message(self.PromptWanted("filter", self.state.arrangement.filter.text, hint))

    def typed(self, purpose: str, text: str) -> None:
        """Rows are filtered while one types."""
        if purpose == "filter":
            try:
                self.state.filter_by(parse(text))
            except BadFilter:
                return  # not finished yet; enter says what is wrong
            self.redraw()

    def entered(self, purpose: str, text: str) -> None:
        del purpose
        try:
            self.state.filter_by(parse(text))
        except BadFilter as error:
            self.say(str(error), "error")
        self.redraw()

    def back(self) -> None:
        """Clear marks, or else the filter."""
        if self.state.arrangement.marked:
            self.state.clear_marks()
        else:
            self.state.filter_by(Filter())
        self.redraw()

    # --- the daemon

    def call(
        self, work: Callable[[], T], then: Callable[[T], None], failed: Callable[[], None] | None = None
    ) -> None:
        """Ask the daemon on a thread of its own; `then` gets the answer here. An error is told, and `failed` called."""

        def run() -> None:
            try:
                found = work()
            except (GpuserveError, OSError) as error:
                self._post(Called(partial(self._call_failed, sentence(error), failed)))
            else:
                self._post(Called(partial(then, found)))

        threading.Thread(target=run, name="call", daemon=True).start()

    def _post(self, message: Message) -> None:
        if not self._gone:  # from a thread: there may be no loop any more to post to
            self.post_message(message)

    def _call_failed(self, why: str, failed: Callable[[], None] | None) -> None:
        self.say(why, "error")
        if failed is not None:
            failed()
        self.redraw()

    def on_called(self, message: Called) -> None:
        message.deliver()

    def on_unmount(self) -> None:
        """Nothing may be posted to a screen that is gone."""
        self._gone = True

    # --- changes

    def propose(self, intent: Intent, about: Question | None) -> None:
        """Ask as much as a change deserves, and carry it out."""
        if about is None:
            self._carry_out(intent)
            return

        def answered(answer: str | None) -> None:
            if answer == "accept":
                self._carry_out(intent)
            elif answer == "drain":
                self._carry_out(replace(intent, action=BY_ID["drain"]))

        self.app.push_screen(Confirm(about), answered)

    def _carry_out(self, intent: Intent) -> None:
        """Tell the daemon, unless that has become impossible while the dialog stood there."""
        problem = self.state.refusal(intent)
        if problem:
            self.say(problem, "warning")
            return
        self.state.begin(intent)
        self.redraw()
        self.call(
            partial(carry_out, self.session.client, intent),
            partial(self._carried_out, intent),
            partial(self.state.end, intent),
        )

    def _carried_out(self, intent: Intent, outcome: Outcome) -> None:
        self.state.end(intent, outcome.generation)
        self.say(outcome.said)
        for why in outcome.refused:
            self.say(why, "error")
        self.carried_out(intent)
        self.redraw()
