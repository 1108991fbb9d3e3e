"""Moving about: rows, screens, sorting, marks, and how fast the display is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gpuserve_tui.view.board import SORTS
from gpuserve_tui.widgets.lines import LineView, TextLines
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

_FASTEST_S = 0.25
_SLOWEST_S = 16.0


class Moving:
    """Nothing here asks the daemon for a change."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """By action."""
        return {
            "down": partial(self.rows, 1),
            "up": partial(self.rows, -1),
            "page_down": partial(self.pages, 1),
            "page_up": partial(self.pages, -1),
            "top": partial(self.edge, end=False),
            "bottom": partial(self.edge, end=True),
            "next_table": partial(self.table, 1),
            "previous_table": partial(self.table, -1),
            "mark": self.mark,
            "sort": self.sort,
            "reverse": self.reverse,
            "freeze": self.freeze,
            "slower": partial(self.pace, 2.0),
            "faster": partial(self.pace, 0.5),
            "logs_of": self.logs,
        }

    @property
    def view(self) -> LineView | None:
        """What has the keys."""
        focused = self._app.main.focused
        if isinstance(focused, LineView):
            return focused
        views = self._app.current.views
        return views[0] if views else None

    def rows(self, count: int) -> None:
        """Up or down."""
        view = self.view
        if isinstance(view, LogView):
            if view.move(count):
                self._app.desk.older()
            self._app.drawing.draw_log_title()
        elif isinstance(view, (RowTable, TextLines)):
            view.move(count)

    def pages(self, count: int) -> None:
        """By what is visible."""
        view = self.view
        if view is not None:
            self.rows(count * max(1, view.size.height - 2))

    def edge(self, *, end: bool) -> None:
        """To the first or last row. Again at the first line of a log: what is before it."""
        view = self.view
        if isinstance(view, LogView):
            if view.to_edge(end=end):
                self._app.desk.older()
            self._app.drawing.draw_log_title()
        elif isinstance(view, (RowTable, TextLines)):
            view.to_edge(end=end)

    def table(self, step: int) -> None:
        """The next table of this screen."""
        views = self._app.current.views
        if views:
            at = views.index(self.view) if self.view in views else 0
            views[(at + step) % len(views)].focus()

    def mark(self) -> None:
        """Mark the row, or unmark it, and go on to the next."""
        app = self._app
        name = app.current.selected_replica
        if name is not None:
            app.outlook.marked = app.outlook.marked ^ {name}
            self.rows(1)
            app.draw()

    def sort(self) -> None:
        """By the next column."""
        outlook = self._app.outlook
        outlook.sort = SORTS[(SORTS.index(outlook.sort) + 1) % len(SORTS)]
        # Figures are looked at for their largest, names for their first.
        outlook.descending = outlook.sort not in {"id", "state"}
        self._app.draw()

    def sort_by(self, column: str) -> None:
        """By a column whose header was clicked."""
        outlook = self._app.outlook
        if column not in SORTS:
            return
        outlook.descending = (
            not outlook.descending if outlook.sort == column else column not in {"id", "state"}
        )
        outlook.sort = column
        self._app.draw()

    def reverse(self) -> None:
        """The other way round."""
        self._app.outlook.descending = not self._app.outlook.descending
        self._app.draw()

    def freeze(self) -> None:
        """Hold the display; data goes on arriving."""
        app = self._app
        app.frozen = not app.frozen
        app.draw()

    def pace(self, factor: float) -> None:
        """Draw less often, or more."""
        app = self._app
        app.refresh_s = min(_SLOWEST_S, max(_FASTEST_S, app.refresh_s * factor))
        app.say(f"drawn every {app.refresh_s:g} s")

    def logs(self) -> None:
        """The log of the selected replica."""
        name = self._app.situation.targets[0].id
        self.logs_of(name)

    def logs_of(self, name: str) -> None:
        """The log of a replica, on the Logs screen."""
        self._app.desk.watch(name)
        self._app.show_pane("logs")
