"""The screen an operator keeps open: GPUs, replicas, trends and a log."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widget import Widget

from gpuserve_tui.screens.pane import Outlook, Pane, log_title
from gpuserve_tui.view.board import Board, imbalanced
from gpuserve_tui.view.layout import Lines, share
from gpuserve_tui.view.logbuffer import LogBuffer
from gpuserve_tui.view.rollouts import rollout_line
from gpuserve_tui.view.rows import (
    GPU_NARROW,
    GPU_WIDE,
    REPLICA_NARROW,
    REPLICA_WIDE,
    gpu_rows,
    replica_rows,
)
from gpuserve_tui.view.totals import queueing, total_rows
from gpuserve_tui.widgets.bars import ruler, trends
from gpuserve_tui.widgets.lines import Line, LineView
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import Status

MODELS_MAX = 6
"""Models with a row of their own where every replica has one."""
MODELS_MIN = 2
"""Models that queue keep a row where replicas scroll already."""
ROLLOUT_HEIGHT = 8
"""In fewer lines there is no room for anything but replicas."""


class Overview(Pane):
    """GPUs, replicas, trends and a log on one screen."""

    def __init__(self, buffer: LogBuffer) -> None:
        super().__init__(id="overview")
        self._buffer = buffer
        self.gpus = RowTable(id="over-gpus", empty="no GPU is visible to the daemon")
        self.replicas = RowTable(id="over-replicas", empty="no replicas: gpuserve apply PROFILE adds some")
        self.log_view = LogView(buffer, id="over-log", small=True)
        self.rollout = Line(classes="ruler")
        self.rules = [Line(classes="ruler") for _ in range(4)]
        self._lines: dict[Widget, int] = {}
        self.trends = [Line(classes="trend") for _ in range(2)]

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield from (self.rules[0], self.gpus, self.rollout, self.rules[1], self.replicas)
        yield from (self.rules[2], *self.trends, self.rules[3], self.log_view)

    @property
    def views(self) -> list[LineView]:
        """The replicas first: they are what one acts on."""
        return [view for view in (self.replicas, self.gpus, self.log_view) if view.display]

    @property
    def selected_replica(self) -> str | None:
        """Of the replica table; with the keys in the GPU table, whoever is on that GPU."""
        return self.replicas.cursor

    def draw(self, board: Board, outlook: Outlook) -> None:
        """All parts, as the height allows."""
        status, wide = board.status, self.wide
        replicas = board.replicas(outlook.filter, outlook.sort, descending=outlook.descending)
        gpus = status.gpus if status else []
        self._draw_rollout(status, outlook.now)
        lines, models = self._share(status, len(replicas))
        rule = int(wide)
        self._give(self.gpus, lines.gpus - rule)
        self._give(self.replicas, lines.replicas - rule)
        self._give(self.log_view, lines.log - rule)
        for place, shown in enumerate((lines.gpus, lines.replicas, lines.trends, lines.log)):
            self.rules[place].display = wide and shown > 0
        self.trends[0].display = lines.trends > 0
        self.trends[1].display = lines.trends > 1
        glyphs = self.gpus.glyphs
        every = status.replicas if status else []
        self.gpus.show(GPU_WIDE if wide else GPU_NARROW, gpu_rows(gpus, every, glyphs, wide=wide))
        rows = replica_rows(
            replicas, glyphs, wide=wide, marked=outlook.marked, uneven=imbalanced(every), busy=outlook.busy, now=outlook.now,
        )  # fmt: skip
        self.replicas.show(
            REPLICA_WIDE if wide else REPLICA_NARROW, rows, pinned=total_rows(status, wide=wide, models=models), sort=outlook.sort,
            descending=outlook.descending,
        )  # fmt: skip
        self._draw_lines(board, outlook, len(replicas), len(every))

    def _share(self, status: Status | None, replicas: int) -> tuple[Lines, int]:
        """Lines for each part, and how many models have a row. Where rows scroll, only what queues has one."""
        if status is None:
            return share(self.size.height, self.size.width, 0, replicas), 0
        height = self.size.height - int(self.rollout.display)
        models = min(MODELS_MAX, len(status.models)) if len(status.models) > 1 else 0
        lines = share(height, self.size.width, len(status.gpus), replicas, 1 + models)
        if lines.replicas >= replicas + 2 + models + int(self.wide):
            return lines, models
        models = min(MODELS_MIN, queueing(status.models)) if models else 0
        return share(height, self.size.width, len(status.gpus), replicas, 1 + models), models

    def _draw_rollout(self, status: Status | None, now: float) -> None:
        line = rollout_line(status, now) if status is not None else []
        self.rollout.display = bool(line) and self.size.height >= ROLLOUT_HEIGHT
        if self.rollout.display:
            self.write(self.rollout, line)

    def _draw_lines(self, board: Board, outlook: Outlook, shown: int, every: int) -> None:
        width, glyphs = self.size.width, self.gpus.glyphs
        name = "" if outlook.trends_of_all else self.selected_replica or ""
        title = name or "all"
        graphs = trends(board.series.get(name), title, width, glyphs)
        for line, cells in zip(self.trends, graphs, strict=False):
            self.write(line, cells)
        if self.wide:
            legend = f"memory: {glyphs.full} ours  {glyphs.other} not ours  {glyphs.free} free"
            self.write(self.rules[0], ruler("GPU", legend, width, glyphs))
            order = f"sort: {outlook.sort} (o)  {shown} of {every} shown"
            self.write(self.rules[1], ruler("REPLICAS", order, width, glyphs))
            span = "5 min, scale 0 to highest (a: all / selected)"
            self.write(self.rules[2], ruler(f"TRENDS {title}", span, width, glyphs))
            source = outlook.log_source or "daemon"
            self.write(
                self.rules[3],
                ruler(f"LOG {source}", log_title(self._buffer, self.log_view, outlook), width, glyphs),
            )

    def _give(self, widget: Widget, lines: int) -> None:
        widget.display = lines > 0
        if lines > 0 and self._lines.get(widget) != lines:
            self._lines[widget] = lines
            widget.styles.height = lines
