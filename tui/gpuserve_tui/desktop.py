"""What is not the fleet's: help, details, filter prompt, copying and saving, theme, mouse, signals."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from textual.widgets import Input

from gpuserve_tui.screens import texts
from gpuserve_tui.screens.dialogs import Ask, Reading
from gpuserve_tui.view import cells
from gpuserve_tui.view.filters import BadFilter, Filter, parse
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.inspect import ReplicaDetail

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

COPY_MAX_BYTES = 1024 * 1024
"""Terminals drop longer OSC 52 sequences, most of them silently."""


class Desktop:
    """Nothing here changes the fleet."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app
        self._purpose = "filter"
        self._mouse = True

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """By action."""
        app = self._app
        return {
            "help": self.help,
            "palette": app.action_command_palette,
            "detail": self.detail,
            "back": self.back,
            "filter": partial(self.prompt, "filter"),
            "log_filter": partial(self.prompt, "only"),
            "trends": self.trends,
            "copy": self.copy,
            "copy_view": self.copy_view,
            "export": self.export,
            "mouse": self.mouse,
            "theme": self.theme,
            "refresh": self.refresh,
            "quit": partial(app.exit, 0),
            "interrupt": self.interrupt,
        }

    # --- reading

    def help(self) -> None:
        """The keys as they are now."""
        self._app.push_screen(Reading("Keys", texts.keys(self._app.settings, self._app.situation)))

    def detail(self) -> None:
        """Everything about the selected row."""
        app = self._app
        if app.pane == "profiles":
            profile = app.profiles.selected
            if profile is not None:
                app.push_screen(Reading(f"{profile.name}: {profile.source}", texts.profile(profile)))
            return
        name = app.current.selected_replica
        if name is not None and app.board.replica(name) is not None:
            self.detail_of(name)
        elif app.pane == "gpus":
            app.say("the cursor is on no replica")

    def detail_of(self, name: str) -> None:
        """Fetch and show one replica."""
        self._app.call(partial(self._app.source.detail, name), self._show_detail)

    def _show_detail(self, found: ReplicaDetail) -> None:
        self._app.push_screen(Reading(found.replica.id, texts.replica(found, self._app.clock())))

    def draw_diff(self) -> None:
        """What the selected profile's file says other than what is applied."""
        profile = self._app.profiles.selected
        self._app.profiles.diff.show(texts.difference(profile) if profile else [])

    # --- what stands in the lines around

    def banner(self, age_s: float) -> str:
        """Why the data may be old; empty where it is not."""
        app = self._app
        if app.lost is not None:
            old = f"data is {cells.age(age_s)} old, " if app.status is not None else ""
            return f"DISCONNECTED  {old}nothing can be changed; trying again: {cells.plain(app.lost.why)}"
        if app.status is not None and not app.situation.live:
            return f"SILENT  connected, but no figures for {cells.age(age_s)}; nothing can be changed"
        return ""

    def note(self) -> str:
        """Filter and marks in force."""
        outlook = self._app.outlook
        parts = [f"/{outlook.filter.text}"] if outlook.filter.text else []
        parts += [f"{len(outlook.marked)} marked"] if outlook.marked else []
        return " ".join(parts)

    def log_note(self) -> str:
        """Search and filter of the log in force."""
        desk = self._app.desk
        parts = [f"/{desk.searched}"] if desk.searched else []
        parts += [f"&{desk.only}"] if desk.only else []
        return "  ".join([*parts, ""])

    # --- prompt

    def prompt(self, purpose: str) -> None:
        """Ask for a filter, or on the Logs screen for what to search."""
        app = self._app
        if purpose == "filter" and app.pane == "logs":
            purpose = "search"
        self._purpose = purpose
        field = app.main.query_one("#prompt", Input)
        before = {"filter": app.outlook.filter.text, "search": app.desk.searched, "only": app.desk.only}
        field.value = before[purpose]
        field.placeholder = f"{purpose}: words, !word, /regex/" + (
            ", state:failed gpu:3 model:x" if purpose == "filter" else ""
        )
        field.can_focus = field.display = True
        field.focus()

    def typing(self, text: str) -> None:
        """Rows are filtered while one types."""
        if self._purpose == "filter" and self._app.main.query_one("#prompt").display:
            try:
                self._app.outlook.filter = parse(text)
            except BadFilter:
                return  # not finished yet; enter says what is wrong
            self._app.draw()

    def prompted(self, text: str) -> None:
        """Enter."""
        app = self._app
        self._close_prompt()
        if self._purpose == "search":
            app.desk.search(text)
        elif self._purpose == "only":
            app.desk.set_only(text)
        else:
            try:
                app.outlook.filter = parse(text)
            except BadFilter as error:
                app.say(str(error), "error")
        app.draw()

    def _close_prompt(self) -> None:
        field = self._app.main.query_one("#prompt", Input)
        field.can_focus = field.display = False
        views = self._app.current.views
        if views:
            views[0].focus()

    def back(self) -> None:
        """Close the prompt; else clear what is in force here."""
        app = self._app
        field = app.main.query_one("#prompt", Input)
        if field.display:
            if self._purpose == "filter":
                app.outlook.filter = Filter()
            self._close_prompt()
        elif app.pane == "logs" and (app.desk.searched or app.desk.only):
            app.desk.search("")
            app.desk.set_only("")
        elif app.outlook.marked:
            app.outlook.marked = frozenset()
        else:
            app.outlook.filter = Filter()
        app.draw()

    # --- taking away

    def copy(self) -> None:
        """The selected row or line."""
        view = self._app.moving.view
        if isinstance(view, LogView):
            self._copy(view.current.text if view.current else "")
        elif isinstance(view, RowTable):
            self._copy(view.text.splitlines()[view.position + 1].strip() if view.position >= 0 else "")

    def copy_view(self) -> None:
        """All the data of this screen."""
        texts_of = [v.text for v in self._app.current.views if isinstance(v, (LogView, RowTable))]
        self._copy("\n\n".join(texts_of))

    def interrupt(self) -> None:
        """ctrl+c: what is selected with the mouse, or a word of help."""
        selected = self._app.screen.get_selected_text()
        if selected:
            self._copy(selected)
        else:
            self._app.say("q leaves (nothing stops); y copies the line")

    def _copy(self, text: str) -> None:
        raw = text.encode()
        if not raw:
            self._app.say("there is nothing to copy", "warning")
            return
        if len(raw) > COPY_MAX_BYTES:
            self._app.say(f"{len(raw):,} bytes are more than terminals take: x saves to a file", "warning")
            return
        self._app.copy_to_clipboard(text)
        self._app.say(f"{len(raw):,} bytes sent to the terminal's clipboard (tmux: set-clipboard on)")

    def export(self) -> None:
        """Save: the name's ending says what."""
        name = f"gpuserve-{time.strftime('%Y%m%d-%H%M%S', time.localtime(self._app.clock()))}"
        ending = "log" if self._app.pane == "logs" else "svg"
        hint = ".svg: this screen   .json: all data   .log: the log's lines (after the filter)"
        self._app.push_screen(Ask("Save as", f"{name}.{ending}", hint), self._save)

    def _save(self, name: str | None) -> None:
        if not name:
            return
        path = Path(name).expanduser()
        try:
            text = self._content(path.suffix)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            self._app.say(f"{path} exists; nothing was written", "error")
        except (OSError, ValueError) as error:
            self._app.say(f"not saved: {error}", "error")
        else:
            self._app.say(f"saved {path.absolute()}, {len(text.encode()):,} bytes")

    def _content(self, suffix: str) -> str:
        app = self._app
        if suffix == ".svg":
            return app.export_screenshot(title="gpuserve-tui")
        if suffix == ".json":
            data = {"status": app.status, "events": list(app.board.events), "taken_at": app.clock()}
            return msgspec.json.format(msgspec.json.encode(data)).decode() + "\n"
        if suffix in {".log", ".txt"}:
            buffer = app.desk.buffer
            return "".join(f"{buffer.line(number).text}\n" for number in buffer.shown)
        raise ValueError(f"{suffix or 'a name without ending'}: use .svg, .json or .log")

    # --- the program

    def trends(self) -> None:
        """Of all, or of the selected replica."""
        self._app.outlook.trends_of_all = not self._app.outlook.trends_of_all
        self._app.draw()

    def theme(self) -> None:
        """The other one."""
        self._app.drawing.set_theme("light" if self._app.current_theme.dark else "dark")

    def refresh(self) -> None:
        """Everything anew."""
        self._app.intake.refresh()
        self._app.fetch_profiles()
        self._app.refresh(layout=True)

    def mouse(self) -> None:
        """Textual has no public way to hand the mouse back while it runs."""
        driver = self._app._driver  # noqa: SLF001
        self._mouse = not self._mouse
        name = "_enable_mouse_support" if self._mouse else "_disable_mouse_support"
        switch = getattr(driver, name, None)
        if switch is not None:
            switch()
        self._app.say(
            "the mouse is this program's" if self._mouse else "the mouse is the terminal's; M takes it back"
        )

    def catch_signals(self) -> None:
        """SIGTERM and SIGHUP leave as `q` does, so that the terminal is as it was."""
        if self._app.is_headless:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, partial(self._app.exit, 128 + number))
