"""The app: one session with a daemon, six screens, and what passes between them. It composes, draws and routes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from gpuserve_tui import cells
from gpuserve_tui.cells import Cell
from gpuserve_tui.feed.client import Client
from gpuserve_tui.feed.events import Attached, Feed, Lost, Told
from gpuserve_tui.feed.logs import ALL, LogReader
from gpuserve_tui.model.actions import ACTIONS, BY_ID, PANES, Situation, key_name, unavailable
from gpuserve_tui.model.filters import Filter
from gpuserve_tui.model.state import View, ViewState
from gpuserve_tui.palette import FleetCommands, Offer
from gpuserve_tui.screens.dialogs import Ask, OneSize, Prompt, Reading
from gpuserve_tui.screens.events import EventsPane
from gpuserve_tui.screens.gpus import GpusPane
from gpuserve_tui.screens.logs import LogPane, LogsPane
from gpuserve_tui.screens.overview import Overview
from gpuserve_tui.screens.pane import Commands, Pane, Session, copy, say
from gpuserve_tui.screens.profiles import ProfilesPane
from gpuserve_tui.screens.replicas import ReplicasPane
from gpuserve_tui.settings import REMOTE_REFRESH_S, Settings
from gpuserve_tui.theme import THEMES, Look
from gpuserve_tui.view import bars, texts
from gpuserve_tui.view.layout import WIDE
from gpuserve_tui.widgets.lines import Line
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable

LOG_FLUSH_S = 0.25
REMOTE_LOG_FLUSH_S = 0.5
EVENT_DRAW_S = 0.2
"""A burst of state changes is drawn together."""
CURTAIN_S = 0.3
"""A daemon that has not sent its state by then is not waited for any longer."""
_NOT_OFFERED = {"interrupt", "palette", "up", "down"}
_PLAIN: Mapping[str, Style] = {}


class News(Message):
    """The feed has told something; it comes from another thread."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told = told


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
        client: Client,
        *,
        first_pane: str = "overview",
        read_only: bool = False,
        settings: Settings | None = None,
        host: str | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        feed: Feed | None = None,
    ) -> None:
        """:param feed: reads `client` already, so that the first frame has data."""
        super().__init__()
        for each in THEMES.values():
            self.register_theme(each)
        self.settings = settings or Settings()
        self._monotonic = monotonic
        self._host = host if host is not None else socket.gethostname().split(".")[0]
        self._remote = "SSH_CONNECTION" in os.environ
        self._feed = feed or Feed(client)
        self._left = False
        self._mouse = True
        self._drawn_at = 0.0
        self._due = False
        """Something has changed that is not on the screen yet."""
        self._curtain: ExitStack | None = None
        self.state = ViewState(
            pane=first_pane, read_only="attached read-only" if read_only else "",
            refresh_s=self.settings.refresh_s or (REMOTE_REFRESH_S if self._remote else 1.0), clock=clock, monotonic=monotonic,
        )  # fmt: skip
        self._look = Look(ascii_only=self.settings.ascii)
        self.session = Session(
            client, self.state, LogReader(client, clock=clock, monotonic=monotonic), self._look
        )
        self.overview = Overview(self.session)
        self.logs = LogsPane(self.session)
        self.profiles = ProfilesPane(self.session)
        panes = (
            self.overview, ReplicasPane(self.session), GpusPane(self.session), self.logs, EventsPane(self.session), self.profiles,
        )  # fmt: skip
        self.panes: Mapping[str, Pane] = dict(zip(PANES, panes, strict=True))
        self._lines = {name: Line(id=name) for name in ("head", "tabs", "alerts", "banner", "foot")}
        self._prompt = Prompt()
        # Before the style sheet is parsed: another theme later parses it a second time.
        self.set_reactive(App.theme, THEMES[self.settings.theme].name)
        self.stylesheet.set_variables(self.get_css_variables())
        self.set_keymap({name: ",".join(keys) for name, keys in self.settings.keys.items()})

    def get_default_screen(self) -> Screen[Any]:
        return OneSize(id="_default")

    def compose(self) -> ComposeResult:
        *above, below = self._lines.values()
        yield from above
        with Container(id="panes"):
            for name, pane in self.panes.items():
                pane.display = name == self.state.pane
                yield pane
        yield self._prompt
        yield below

    def on_mount(self) -> None:
        """Start listening. Nothing is shown until the first frame is whole: layouts without data cost as much as one with it."""
        self._curtain = ExitStack()
        self._curtain.enter_context(self.batch_update())
        self.set_timer(CURTAIN_S, self._raise_curtain)
        self.call_after_refresh(self.show_pane, self.state.pane)
        self._feed.start()
        self._feed.listen(lambda told: None if self._left else self.post_message(News(told)))
        self.set_interval(REMOTE_LOG_FLUSH_S if self._remote else LOG_FLUSH_S, self._flush_log)
        self.set_interval(EVENT_DRAW_S, self._draw_if_due)
        self.set_interval(1.0, self._tick)
        self._catch_signals()

    def on_unmount(self) -> None:
        self._left = True
        self._feed.close()
        self.session.log.close()

    def _catch_signals(self) -> None:
        """SIGTERM and SIGHUP leave as `q` does, so that the terminal is as it was."""
        if self.is_headless:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, partial(self.exit, 128 + number))

    # --- what comes in

    def on_news(self, message: News) -> None:
        told = message.told
        if isinstance(told, Attached):
            self.state.attached(may_operate=told.version.may_operate)
            self.profiles.fetch()
        elif isinstance(told, Lost):
            self.state.disconnected(told.why)
            self.draw()
        else:
            inbox = self._feed.take()
            self.state.noticed(inbox.past, inbox.events)
            if inbox.status is not None:
                self.state.heard(inbox.status, fresh=inbox.fresh)
            self._arrived(fresh=inbox.fresh)

    def _arrived(self, *, fresh: bool) -> None:
        """Figures wait for the pace of the screen, a change of state does not."""
        self._due = True
        first = self._curtain is not None
        pace_s = self.state.arrangement.refresh_s - EVENT_DRAW_S
        if first or not fresh or self._monotonic() - self._drawn_at >= pace_s:
            self._draw_if_due(urgent=fresh or first)

    # --- what is known

    @property
    def current(self) -> Pane:
        return self.panes[self.state.pane]

    @property
    def main(self) -> Screen[Any]:
        """The screen under whatever dialogs."""
        return self.screen_stack[0]

    @property
    def situation(self) -> Situation:
        return self.state.view.situation(self.current.selection)

    # --- keys

    @property
    def commands(self) -> Commands:
        """What keys do on every screen."""
        return {
            **{pane: partial(self.show_pane, pane) for pane in PANES},
            "back": self._back,
            "freeze": self._freeze,
            "slower": partial(self._pace, 2.0),
            "faster": partial(self._pace, 0.5),
            "export": self._export,
            "mouse": self._toggle_mouse,
            "theme": self.switch_theme,
            "help": self._help,
            "palette": self.action_command_palette,
            "refresh": self._refresh_all,
            "quit": partial(self.exit, 0),
            "interrupt": self._interrupt,
        }

    def action_run(self, name: str) -> None:
        """Any key of the table. What is impossible now says why."""
        problem = unavailable(BY_ID[name], self.situation)
        if problem:
            say(self, problem, "warning")
            return
        command = self.current.commands.get(name) or self.commands[name]
        command()

    def offers(self) -> Iterator[Offer]:
        """What the palette shows: every action that is possible now, and what screens offer by name."""
        now = self.situation
        for action in ACTIONS:
            if action.id not in _NOT_OFFERED and not unavailable(action, now):
                keys = ", ".join(key_name(key) for key in self.settings.keys_of(action.id))
                yield Offer(action.label, f"{action.help} ({keys})", partial(self.action_run, action.id))
        view = self.state.view
        for pane in reversed(tuple(self.panes.values())):
            yield from pane.offers(view)

    def show_pane(self, name: str) -> None:
        self.state.show(name)
        for each, pane in self.panes.items():
            pane.display = each == name
        self.current.shown()
        self.current.focus_first()
        self.call_after_refresh(self.draw)

    def _back(self) -> None:
        """Close the prompt; else clear what is in force on this screen."""
        purpose = self._close_prompt()
        if purpose is None:
            self.current.back()
            return
        if purpose == "filter":
            self.state.filter_by(Filter())
        self.draw()

    def _freeze(self) -> None:
        self.state.toggle_frozen()
        self.draw()

    def _pace(self, factor: float) -> None:
        self.state.pace(factor)
        say(self, f"drawn every {self.state.arrangement.refresh_s:g} s")

    def switch_theme(self) -> None:
        self.theme = THEMES["light" if self.current_theme.dark else "dark"].name
        self.draw()

    def _help(self) -> None:
        self.push_screen(Reading(self._look, "Keys", texts.keys(self.settings, self.situation)))

    def _refresh_all(self) -> None:
        self._feed.refresh()
        self.profiles.fetch()
        self.refresh(layout=True)

    def _interrupt(self) -> None:
        """ctrl+c: what is selected with the mouse, or a word of help."""
        selected = self.screen.get_selected_text()
        if selected:
            copy(self, selected)
        else:
            say(self, "q leaves (nothing stops); y copies the line")

    def _toggle_mouse(self) -> None:
        """Textual has no public way to hand the mouse back while it runs."""
        self._mouse = not self._mouse
        name = "_enable_mouse_support" if self._mouse else "_disable_mouse_support"
        switch = getattr(self._driver, name, None)
        if switch is not None:
            switch()
        say(
            self,
            "the mouse is this program's" if self._mouse else "the mouse is the terminal's; M takes it back",
        )

    # --- saving

    def _export(self) -> None:
        """Save: the name's ending says what."""
        now = time.localtime(self.state.view.now)
        ending = "log" if self.state.pane == "logs" else "svg"
        hint = ".svg: this screen   .json: all data   .log: the log's lines (after the filter)"
        name = f"gpuserve-{time.strftime('%Y%m%d-%H%M%S', now)}.{ending}"
        self.push_screen(Ask("Save as", name, hint), self._save)

    def _save(self, name: str | None) -> None:
        if not name:
            return
        path = Path(name).expanduser()
        try:
            text = self._content(path.suffix)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            say(self, f"{path} exists; nothing was written", "error")
        except (OSError, ValueError) as error:
            say(self, f"not saved: {error}", "error")
        else:
            say(self, f"saved {path.absolute()}, {len(text.encode()):,} bytes")

    def _content(self, suffix: str) -> str:
        if suffix == ".svg":
            return self.export_screenshot(title="gpuserve-tui")
        if suffix == ".json":
            view = self.state.view
            data = {"status": view.status, "events": view.events, "taken_at": view.now}
            return msgspec.json.format(msgspec.json.encode(data)).decode() + "\n"
        if suffix in {".log", ".txt"}:
            lines = self.session.log.lines
            return "".join(f"{lines.line(number).text}\n" for number in lines.shown)
        raise ValueError(f"{suffix or 'a name without ending'}: use .svg, .json or .log")

    # --- the prompt

    def on_pane_prompt_wanted(self, message: Pane.PromptWanted) -> None:
        """A screen wants something to be typed."""
        self._prompt.ask(message.purpose, message.value, message.hint)

    def on_input_changed(self, event: Input.Changed) -> None:
        """A filter of rows acts while it is typed."""
        if event.input is self._prompt and self._prompt.purpose is not None:
            self.current.typed(self._prompt.purpose, event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input is self._prompt and (purpose := self._close_prompt()) is not None:
            self.current.entered(purpose, event.value)

    def _close_prompt(self) -> str | None:
        """Take it away where it is shown; what it was for."""
        purpose = self._prompt.purpose
        if purpose is not None:
            self._prompt.close()
            self.current.focus_first()
        return purpose

    # --- the log

    @property
    def _log_pane(self) -> LogPane:
        """The pane whose log is visible, or would be."""
        return self.logs if self.state.pane == "logs" else self.overview

    def _flush_log(self) -> None:
        if not self.state.arrangement.frozen:
            self._log_pane.flush()

    def on_pane_log_wanted(self, message: Pane.LogWanted) -> None:
        """Another log, in both of its views."""
        self._watch(message.source)
        if message.go_there:
            self.show_pane("logs")
        self.draw()

    def _watch(self, source: str) -> None:
        if self.session.log.watch(source, self.state.replica_names):
            self._log_changed()

    def _log_changed(self) -> None:
        for pane in (self.logs, self.overview):
            pane.log_view.changed()

    def on_log_view_end_wanted(self, message: LogView.EndWanted) -> None:
        """The newest lines had to go for the past."""
        del message
        self.session.log.reload(self.state.replica_names)
        self._log_changed()
        self._log_pane.log_view.follow(on=True)
        self.draw()

    # --- drawing: at the pace of the screen, not of the data

    def on_pane_redraw(self, message: Pane.Redraw) -> None:
        if message.soon:
            self._due = True
        else:
            self.draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def on_row_table_opened(self, message: RowTable.Opened) -> None:
        """Twice clicked: the same as enter."""
        del message
        self.action_run("detail")

    def _tick(self) -> None:
        """Once a second: ages go on, whether data comes or not."""
        if self.session.log.state.source == ALL:
            self._watch(ALL)  # replicas that came or went
        if self._monotonic() - self._drawn_at >= min(self.state.arrangement.refresh_s, 1.0) - 0.1:
            self._draw_lines(self.state.view)

    def _draw_if_due(self, *, urgent: bool = False) -> None:
        """Draw what has changed, a burst of it together."""
        if self._due and (urgent or self._monotonic() - self._drawn_at >= EVENT_DRAW_S):
            self.draw()

    def draw(self) -> None:
        """Show what is known, unless the display is frozen."""
        if not self.is_running or self._left:
            return
        self._due = False
        self._drawn_at = self._monotonic()
        view = self.state.view
        live = not view.stale or view.status is None
        self._look.use(self.theme, live=live)
        if not view.arrangement.frozen:
            self.current.show(view)
            if self.main.has_class("stale") == live:
                self.main.set_class(not live, "stale")
                for each in self.current.views:
                    each.refresh()
        self._draw_lines(view)
        if self.current.size.height and (view.status is not None or view.lost is not None):
            self._raise_curtain()

    def _raise_curtain(self) -> None:
        if self._curtain is None:
            return
        self._curtain.close()
        self._curtain = None
        if not self.is_headless:
            # What was imported and built lives as long as the program: a full collection took 40 ms to find that out.
            gc.freeze()

    def _draw_lines(self, view: View) -> None:
        width, glyphs = self.size.width, self._look.glyphs
        found = bars.alerts(view.status) if view.status else []
        wide = width >= WIDE and self.size.height >= 24
        self._write("head", bars.head(view, width, glyphs, self._host))
        self._write("tabs", bars.tabs(view, width, [] if wide else found, glyphs))
        self._write("alerts", bars.alert_cells(found, width, glyphs), shown=wide and bool(found))
        banner = bars.banner(view)
        self._write("banner", [Cell(cells.fit(f" {banner}", width))], shown=bool(banner))
        self._write("foot", bars.foot(view.situation(self.current.selection), width, self.settings))

    def _write(self, name: str, line: list[Cell], *, shown: bool = True) -> None:
        widget = self._lines[name]
        widget.display = shown
        if shown:
            widget.say(line, _PLAIN if name == "banner" else self._look.roles)
