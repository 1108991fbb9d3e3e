"""What the six screens have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from textual.containers import Vertical

from gpuserve_tui.view.board import Board
from gpuserve_tui.view.cells import Cell
from gpuserve_tui.view.filters import Filter
from gpuserve_tui.view.layout import WIDE
from gpuserve_tui.view.logbuffer import LEVELS, LogBuffer
from gpuserve_tui.widgets.lines import Line, LineView
from gpuserve_tui.widgets.logview import LogView


@dataclass
class Outlook:
    """What panes draw beside the board: how the operator has arranged things."""

    filter: Filter = field(default_factory=Filter)
    sort: str = "id"
    descending: bool = False
    marked: frozenset[str] = frozenset()
    busy: dict[str, str] = field(default_factory=dict)
    trends_of_all: bool = False
    log_source: str = "all"
    level: int = 0
    log_note: str = ""
    now: float = 0.0
    """Unix seconds."""


class Pane(Vertical):
    """One screen."""

    @property
    def wide(self) -> bool:
        """Room for rulers, bars and every column."""
        return self.size.width >= WIDE

    @property
    def views(self) -> list[LineView]:
        """What can have the keys, in order."""
        return [view for view in self.query(LineView) if view.display]

    @property
    def selected_replica(self) -> str | None:
        """The replica that keys act on."""
        return None

    @property
    def selected_gpu(self) -> str | None:
        """The UUID of the GPU that keys act on."""
        return None

    def draw(self, board: Board, outlook: Outlook) -> None:
        """Show the board."""

    def write(self, widget: Line, cells: list[Cell]) -> None:
        """Write one line."""
        widget.say(cells, getattr(self.app, "roles", {}))


def log_title(buffer: LogBuffer, view: LogView, outlook: Outlook) -> str:
    """State of the log: following or not, level, how many lines, how many that were not shown."""
    state = (
        "FOLLOW"
        if view.following
        else f"{view.glyphs.down} {view.unseen} new (G)"
        if view.unseen
        else "PAUSED (G)"
    )
    level = f"level>={LEVELS[outlook.level]}  " if outlook.level else ""
    return f"{outlook.log_note}{state}  {level}{len(buffer.shown):,} lines, {buffer.dropped:,} dropped"
