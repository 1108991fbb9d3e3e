"""The screen an operator keeps open: GPUs, replicas, trends and a log."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.timer import Timer
from textual.widget import Widget

from gpuserve_tui.feed.logs import ALL
from gpuserve_tui.model.state import View
from gpuserve_tui.screens.logs import LogPane, log_title
from gpuserve_tui.screens.pane import Commands, Session
from gpuserve_tui.screens.replicas import ReplicaTablePane
from gpuserve_tui.view.bars import rollout_line, ruler, trends
from gpuserve_tui.view.gpus import GPU_NARROW, GPU_WIDE, gpu_rows
from gpuserve_tui.view.layout import Lines, share
from gpuserve_tui.view.replicas import queueing
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
SETTLE_S = 0.3
"""The cursor must rest this long on a replica before its log is fetched."""


class Overview(ReplicaTablePane, LogPane):
    """GPUs, replicas, trends and a log on one screen."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="overview")
        self.gpus = RowTable(session.look, id="over-gpus", empty="no GPU is visible to the daemon")
        self.replicas = RowTable(
            session.look, id="over-replicas", empty="no replicas: gpuserve apply PROFILE adds some"
        )
        self.log_view = LogView(session.look, session.log.lines, id="over-log", small=True)
        self.rollout = Line(classes="ruler")
        self.rules = [Line(classes="ruler") for _ in range(4)]
        self.trends = [Line(classes="trend") for _ in range(2)]
        self._heights: dict[Widget, int] = {}
        self._resting: Timer | None = None

    def compose(self) -> ComposeResult:
        yield from (self.rules[0], self.gpus, self.rollout, self.rules[1], self.replicas)
        yield from (self.rules[2], *self.trends, self.rules[3], self.log_view)

    @property
    def commands(self) -> Commands:
        return {**super().commands, "trends": self.redrawn(self.state.toggle_trends)}

    @property
    def views(self) -> list[LineView]:
        """The replicas first: they are what one acts on."""
        return [view for view in (self.replicas, self.gpus, self.log_view) if view.display]

    def shown(self) -> None:
        """The log is that of the selected replica again."""
        self._follow_selected()

    def on_row_table_highlighted(self, message: RowTable.Highlighted) -> None:
        """Trends and log follow the selected replica."""
        if message.table is self.replicas:
            self._follow_selected()
            self.redraw(soon=True)

    def _follow_selected(self) -> None:
        """The log is that of the selected replica, once the cursor rests there."""
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(SETTLE_S, self._rests)

    def _rests(self) -> None:
        name = self.selection.replica
        if self.state.pane == "overview" and name is not None:
            self.post_message(self.LogWanted(name))

    def draw(self, view: View) -> None:
        wide = self.wide
        replicas = view.shown_replicas
        self._draw_rollout(view)
        lines, models = self._share(view.status, len(replicas))
        rule = int(wide)
        self._give(self.gpus, lines.gpus - rule)
        self._give(self.replicas, lines.replicas - rule)
        self._give(self.log_view, lines.log - rule)
        for place, shown in enumerate((lines.gpus, lines.replicas, lines.trends, lines.log)):
            self.rules[place].display = wide and shown > 0
        self.trends[0].display = lines.trends > 0
        self.trends[1].display = lines.trends > 1
        gpus = gpu_rows(view.gpus, view.replicas, self.gpus.glyphs, wide=wide)
        self.gpus.show(GPU_WIDE if wide else GPU_NARROW, gpus)
        self.draw_replicas(view, replicas, models)
        self._draw_lines(view, len(replicas))

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

    def _draw_rollout(self, view: View) -> None:
        line = rollout_line(view.status, view.now) if view.status is not None else []
        self.rollout.display = bool(line) and self.size.height >= ROLLOUT_HEIGHT
        if self.rollout.display:
            self.write(self.rollout, line)

    def _draw_lines(self, view: View, shown: int) -> None:
        how, width, glyphs = view.arrangement, self.size.width, self.gpus.glyphs
        name = "" if how.trends_of_all else self.selection.replica or ""
        title = name or "all"
        for line, cells in zip(
            self.trends, trends(self.state.trend(name), title, width, glyphs), strict=False
        ):
            self.write(line, cells)
        if self.wide:
            log = self.session.log
            source = ALL if log.state.source is None else log.state.source or "daemon"
            legend = f"memory: {glyphs.full} ours  {glyphs.other} not ours  {glyphs.free} free"
            order = f"sort: {how.sort} (o)  {shown} of {len(view.replicas)} shown"
            span = "5 min, scale 0 to highest (a: all / selected)"
            titles = (
                ("GPU", legend),
                ("REPLICAS", order),
                (f"TRENDS {title}", span),
                (f"LOG {source}", log_title(log.lines, self.log_view, log.state)),
            )
            for line, (left, right) in zip(self.rules, titles, strict=True):
                self.write(line, ruler(left, right, width, glyphs))

    def _give(self, widget: Widget, lines: int) -> None:
        widget.display = lines > 0
        if lines > 0 and self._heights.get(widget) != lines:
            self._heights[widget] = lines
            widget.styles.height = lines
