"""When and what is drawn: the visible pane and the lines around it, at the pace of the screen, not of the data."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.style import Style

from gpuserve_tui import theme as look
from gpuserve_tui.logdesk import ALL
from gpuserve_tui.view import cells
from gpuserve_tui.view.board import alerts
from gpuserve_tui.view.cells import Cell
from gpuserve_tui.widgets.bars import alert_cells, foot, head, tabs

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

EVENT_DRAW_S = 0.2
"""A burst of state changes is drawn together."""
CURTAIN_S = 0.3
"""A daemon that has not sent its state by then is not waited for any longer."""
_PLAIN: Mapping[str, Style] = {}


class Drawing:
    """Belongs to the app."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app
        self._drawn_at = 0.0
        self.due = False
        """Something has changed that is not on the screen yet."""
        self._curtain: ExitStack | None = None

    def begin(self) -> None:
        """Show nothing until the first frame is whole: layouts without data cost as much as one with it."""
        self._curtain = ExitStack()
        self._curtain.enter_context(self._app.batch_update())
        self._app.set_timer(CURTAIN_S, self._raise_curtain)

    def _raise_curtain(self) -> None:
        if self._curtain is None:
            return
        self._curtain.close()
        self._curtain = None
        if not self._app.is_headless:
            # What was imported and built lives as long as the program: a full collection took 40 ms to find that out.
            gc.freeze()

    def wanted(self, *, fresh: bool) -> None:
        """New data: figures wait for the pace of the screen, a change of state does not."""
        self.due = True
        first = self._curtain is not None
        if first or not fresh or self._app.monotonic() - self._drawn_at >= self._app.refresh_s - EVENT_DRAW_S:
            self.if_due(urgent=fresh or first)

    def set_theme(self, name: str) -> None:
        """Dark or light."""
        app = self._app
        app.theme = look.THEMES[name].name
        self.draw()

    def tick(self) -> None:
        """Once a second: ages go on, whether data comes or not."""
        app = self._app
        if app.desk.source == ALL:
            app.desk.watch(ALL)  # replicas that came or went
        if app.monotonic() - self._drawn_at >= min(app.refresh_s, 1.0) - 0.1:
            self.bars()

    def if_due(self, *, urgent: bool = False) -> None:
        """Draw what has changed, a burst of it together."""
        app = self._app
        if self.due and (urgent or app.monotonic() - self._drawn_at >= EVENT_DRAW_S):
            self.draw()

    def draw(self) -> None:
        """Show what is known, unless the display is frozen."""
        app = self._app
        if not app.is_running or app.closing:
            return
        self.due = False
        self._drawn_at = app.monotonic()
        live = app.situation.live or app.status is None
        app.roles = look.styles_of(app.theme, live=live)
        if app.frozen:
            self.bars()
            return
        app.outlook.busy = app.acting.doing()
        app.outlook.log_source = app.desk.source if app.desk.source is not None else ALL
        app.outlook.level = app.desk.level
        app.outlook.log_note = app.desktop.log_note()
        app.outlook.now = app.clock()
        app.current.draw(app.board, app.outlook)
        if app.main.has_class("stale") == live:
            app.main.set_class(not live, "stale")
            for view in app.current.views:
                view.refresh()
        self.bars()
        if app.current.size.height and (app.status is not None or app.lost is not None):
            self._raise_curtain()

    def draw_log_title(self) -> None:
        """The log's figures alone."""
        app = self._app
        if app.pane == "logs" and not app.frozen:
            app.outlook.log_source = app.desk.source if app.desk.source is not None else ALL
            app.current.draw(app.board, app.outlook)

    def bars(self) -> None:
        """The lines around the pane."""
        app = self._app
        width, now = app.size.width, app.situation
        age_s = app.monotonic() - app.heard_at
        found = alerts(app.status) if app.status else []
        wide = width >= 100 and app.size.height >= 24
        mode = "RO" if now.read_only else "RW"
        self._write(
            "head",
            head(
                app.status, width, app.glyphs, host=app.host, age_s=age_s, lost=app.lost is not None, mode=mode,
                frozen=app.frozen, now=app.clock(),
            ),
        )  # fmt: skip
        note = app.desktop.note()
        self._write("tabs", tabs(app.pane, width, app.board.unread, [] if wide else found, app.glyphs, note))
        self._write("alerts", alert_cells(found, width, app.glyphs), shown=wide and bool(found))
        banner = app.desktop.banner(age_s)
        self._write("banner", [Cell(cells.fit(f" {banner}", width))], shown=bool(banner))
        self._write("foot", foot(now, width, app.settings))

    def _write(self, name: str, line: list[Cell], *, shown: bool = True) -> None:
        app = self._app
        widget = app.lines[name]
        widget.display = shown
        if shown:
            widget.say(line, _PLAIN if name == "banner" else app.roles)
