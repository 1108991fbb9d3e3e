"""The Events screen: what has happened, the newest last."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell
from gpuserve_tui.model.actions import Selection
from gpuserve_tui.model.state import View
from gpuserve_tui.screens.pane import Pane, Session
from gpuserve_tui.view.layout import Column, Row
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import FleetEvent

SEVERITY_ROLES = {"error": "err", "warning": "warn", "info": ""}
COLUMNS: Sequence[Column] = (
    Column("time", "Time", 14, right=True),
    Column("severity", "Severity", 8, rank=1),
    Column("subject", "Subject", 14, grow=10),
    Column("text", "What happened", 30, grow=400),
)


class EventsPane(Pane):
    """All that pass the filter."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="events")
        self.table = RowTable(session.look, id="event-table", empty="nothing has happened yet")

    def compose(self) -> ComposeResult:
        yield self.table

    @property
    def selection(self) -> Selection:
        """Whom the event is about."""
        row = next((row for row in self.table.rows if row.key == self.table.cursor), None)
        return Selection(row.cells["subject"][0].text if row else None)

    def draw(self, view: View) -> None:
        """A cursor on the last row stays on the last row."""
        wanted = view.arrangement.filter
        rows = [event_row(event, n, view.now) for n, event in enumerate(view.events)]
        rows = [r for r in rows if wanted.matches(f"{r.cells['subject'][0].text} {r.cells['text'][0].text}")]
        last = not self.table.rows or self.table.position == len(self.table.rows) - 1
        self.table.show(COLUMNS, rows)
        if last:
            self.table.to_edge(end=True)


def event_row(event: FleetEvent, number: int, now: float) -> Row:
    """One event; `now`: Unix seconds. Its state words carry the meaning; the colour repeats it."""
    replica = event.replica
    subject = replica.id if replica else "daemon"
    text = event.message or ""
    if replica is not None:
        came = f"{event.previous_state} -> " if event.previous_state else ""
        text = f"{came}{replica.state}" + (f": {replica.reason}" if replica.reason else "")
    role = SEVERITY_ROLES.get(event.severity, "")
    return Row(
        f"{number}",
        {
            "time": (Cell(c.moment(event.at, now)),),
            "severity": (Cell(event.severity, role),),
            "subject": (Cell(c.plain(subject)),),
            "text": (Cell(c.plain(text), role),),
        },
    )
