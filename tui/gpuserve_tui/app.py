"""The screen: one daemon, six panes, one table of actions."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from gpuserve_tui import theme as look
from gpuserve_tui.acting import Acting
from gpuserve_tui.actions import ACTIONS, BY_ID, PANES, Situation, unavailable
from gpuserve_tui.desktop import Desktop
from gpuserve_tui.drawing import EVENT_DRAW_S, Drawing
from gpuserve_tui.intake import Intake, News
from gpuserve_tui.link import Feed, Lost, Source
from gpuserve_tui.logdesk import ALL, LogDesk
from gpuserve_tui.moving import Moving
from gpuserve_tui.palette import FleetCommands
from gpuserve_tui.screens.overview import Overview
from gpuserve_tui.screens.pane import Outlook, Pane
from gpuserve_tui.screens.panes import EventsPane, GpusPane, LogsPane, ProfilesPane, ReplicasPane
from gpuserve_tui.settings import REMOTE_REFRESH_S, Settings
from gpuserve_tui.standing import situation_of
from gpuserve_tui.threads import Called, calling
from gpuserve_tui.view import cells
from gpuserve_tui.view.board import Board
from gpuserve_tui.widgets.lines import Line
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.inspect import ProfilesView
from gpuserved.api.types import Status

LOG_FLUSH_S = 0.25
REMOTE_LOG_FLUSH_S = 0.5


class FleetApp(App[int]):
    """Its return value is the exit code."""

    TITLE = "gpuserve"
    CSS_PATH = Path(__file__).with_name("app.tcss")
    AUTO_FOCUS = None
    COMMANDS: ClassVar[set[Any]] = {FleetCommands}
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            ",".join(action.keys), f"run('{action.id}')", action.label, show=False, id=action.id,
            priority=action.id == "interrupt", system=action.id == "interrupt",
        )
        for action in ACTIONS
    ]  # fmt: skip

    def __init__(
        self,
        source: Source,
        *,
        read_only: bool = False,
        settings: Settings | None = None,
        host: str | None = None,
        clock: Callable[[], float] = time.time,
        feed: Feed | None = None,
    ) -> None:
        """:param feed: reads `source` already, so that the first frame has data."""
        super().__init__()
        for each in look.THEMES.values():
            self.register_theme(each)
        self.source = source
        self.settings = settings or Settings()
        self.board = Board()
        self.pane = self.first_pane = "overview"
        self.frozen = False
        self.connected = False
        self.monotonic = time.monotonic
        self.clock = clock
        self.glyphs = cells.ASCII if self.settings.ascii else cells.UNICODE
        self.roles: Mapping[str, Style] = look.styles_of(look.DARK.name, live=True)
        self.lines = {name: Line(id=name) for name in ("head", "tabs", "alerts", "banner", "foot")}
        self.drawing = Drawing(self)
        self.intake = Intake(self, feed or Feed(source))
        self.outlook = Outlook()
        self.host = host if host is not None else socket.gethostname().split(".")[0]
        self.remote = "SSH_CONNECTION" in os.environ
        self.refresh_s = self.settings.refresh_s or (REMOTE_REFRESH_S if self.remote else 1.0)
        self.lost: Lost | None = None
        self.heard_at = self.monotonic()
        self.read_only = "attached read-only" if read_only else ""
        self.closing = False
        self.acting = Acting(self)
        self.desk = LogDesk(self)
        self.moving = Moving(self)
        self.desktop = Desktop(self)
        self.commands: dict[str, Callable[[], None]] = {
            **self.acting.commands, **self.desk.commands, **self.moving.commands, **self.desktop.commands,
            **{pane: partial(self.show_pane, pane) for pane in PANES},
        }  # fmt: skip
        self.overview = Overview(self.desk.buffer)
        self.logs = LogsPane(self.desk.buffer)
        self.profiles = ProfilesPane()
        panes = (self.overview, ReplicasPane(), GpusPane(), self.logs, EventsPane(), self.profiles)
        self.panes: dict[str, Pane] = dict(zip(PANES, panes, strict=True))
        # Before the style sheet is parsed: another theme later parses it a second time.
        self.set_reactive(App.theme, look.THEMES[self.settings.theme].name)
        self.stylesheet.set_variables(self.get_css_variables())
        self.set_keymap({name: ",".join(keys) for name, keys in self.settings.keys.items()})

    def compose(self) -> ComposeResult:
        """Head, screens, alerts, banner, the pane, the prompt, the keys."""
        *above, below = self.lines.values()
        yield from above
        with Container(id="panes"):
            for name, pane in self.panes.items():
                pane.display = name == self.first_pane
                yield pane
        yield Input(id="prompt", compact=True)
        yield below

    def on_mount(self) -> None:
        """Start listening."""
        self.drawing.begin()
        self.query_one("#prompt", Input).can_focus = False  # until it is shown
        self.call_after_refresh(self.show_pane, self.first_pane)
        self.intake.begin()
        self.set_interval(REMOTE_LOG_FLUSH_S if self.remote else LOG_FLUSH_S, self.desk.flush)
        self.set_interval(EVENT_DRAW_S, self.drawing.if_due)
        self.set_interval(1.0, self.drawing.tick)
        self.desktop.catch_signals()

    def on_unmount(self) -> None:
        """Nothing may be posted to a screen that is gone."""
        self.closing = True
        self.intake.close()
        self.desk.close()

    # --- what comes in

    def on_news(self, message: News) -> None:
        """From the daemon."""
        self.intake.take(message.told)

    def on_called(self, message: Called) -> None:
        """A call to the daemon came back."""
        if message.error is not None:
            self.say(message.error, "error")
            if message.failed is not None:
                message.failed()
            self.draw()
        else:
            message.then(message.value)

    def call(self, work: Callable[[], Any], then: Callable[[Any], None], failed: Callable[[], None] | None = None) -> None:  # fmt: skip
        """Ask the daemon something without holding up the screen; `then` gets the answer."""
        calling(work, then, failed, self.post)

    def post(self, message: Message) -> None:
        """From a thread, to the app as long as there is one."""
        if not self.closing:
            self.post_message(message)

    def fetch_profiles(self) -> None:
        """The list of profiles, for the Profiles screen."""
        self.call(self.source.profiles, self._got_profiles)

    def _got_profiles(self, found: ProfilesView) -> None:
        self.profiles.profiles = found.profiles
        self.desktop.draw_diff()
        self.draw()

    # --- what is known

    @property
    def status(self) -> Status | None:
        """As the daemon sent it last."""
        return self.board.status

    @property
    def replica_names(self) -> list[str]:
        """All replicas, in the daemon's order."""
        return [replica.id for replica in self.board.status.replicas] if self.board.status else []

    @property
    def current(self) -> Pane:
        """The visible pane."""
        return self.panes[self.pane]

    @property
    def situation(self) -> Situation:
        """What decides which actions are possible now."""
        return situation_of(self)

    def say(self, text: str, severity: str = "information") -> None:
        """A toast: the result of what the operator did, never markup."""
        level: Any = severity
        self.notify(cells.plain(text), severity=level, markup=False, timeout=8 if severity == "error" else 4)

    # --- keys

    def action_run(self, name: str) -> None:
        """Any key of the table. What is impossible now says why."""
        problem = unavailable(BY_ID[name], self.situation)
        if problem:
            self.say(problem, "warning")
            return
        self.commands[name]()

    def show_pane(self, name: str) -> None:
        """Another screen."""
        self.pane, self.frozen = name, False
        for each, pane in self.panes.items():
            pane.display = each == name
        if name == "events":
            self.board.unread = 0
        if name == "profiles":
            self.fetch_profiles()
        if name == "logs" and self.desk.source is None:
            self.desk.watch(ALL)
        views = self.current.views
        if views:
            views[0].focus()
        self.desk.follow_selected()
        self.call_after_refresh(self.draw)

    def clear_marks(self) -> None:
        """No row is marked."""
        self.outlook.marked = frozenset()
        self.draw()

    def on_row_table_highlighted(self, message: RowTable.Highlighted) -> None:
        """What depends on the selected row follows it."""
        if message.table.id in {"over-replicas", "replica-table"}:
            self.desk.follow_selected()
            self.drawing.due = True
        elif message.table.id == "profile-table":
            self.desktop.draw_diff()

    def on_log_view_end_wanted(self, message: LogView.EndWanted) -> None:
        """The newest lines had to go for the past."""
        del message
        self.desk.reload()

    # --- drawing

    def draw(self) -> None:
        """Show what is known, unless the display is frozen."""
        self.drawing.draw()

    @property
    def main(self) -> Screen[Any]:
        """The screen under whatever dialogs."""
        return self.screen_stack[0]

    def on_resize(self) -> None:
        """Other columns fit."""
        self.call_after_refresh(self.draw)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The prompt's text is a filter, or a search."""
        if event.input.id == "prompt":
            self.desktop.prompted(event.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """A filter of rows acts while it is typed."""
        if event.input.id == "prompt":
            self.desktop.typing(event.value)

    def on_row_table_opened(self, message: RowTable.Opened) -> None:
        """Twice clicked: the same as enter."""
        del message
        self.action_run("detail")

    def on_row_table_header_clicked(self, message: RowTable.HeaderClicked) -> None:
        """A header sorts by its column; again: the other way round."""
        self.moving.sort_by(message.column)
