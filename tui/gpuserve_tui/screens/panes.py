"""The screens beside the Overview: each draws a board, and names what is selected."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal

from gpuserve_tui.screens.pane import Outlook, Pane, log_title
from gpuserve_tui.view.board import Board, imbalanced
from gpuserve_tui.view.cells import Cell
from gpuserve_tui.view.lists import (
    EVENT_COLUMNS,
    PROFILE_COLUMNS,
    TREE_COLUMNS,
    event_row,
    profile_row,
    tree_rows,
)
from gpuserve_tui.view.logbuffer import LogBuffer
from gpuserve_tui.view.rows import (
    REPLICA_NARROW,
    REPLICA_WIDE,
    explanation,
    replica_rows,
)
from gpuserve_tui.view.totals import total_rows
from gpuserve_tui.widgets.bars import ruler
from gpuserve_tui.widgets.lines import Line, LineView, TextLines
from gpuserve_tui.widgets.logview import LogView
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.inspect import ProfileView


class ReplicasPane(Pane):
    """Every column of every replica, and beside it what is known of the selected one."""

    def __init__(self) -> None:
        super().__init__(id="replicas")
        self.table = RowTable(id="replica-table", empty="no replica matches")
        self.side = TextLines(id="replica-side")
        self.side.can_focus = False

    def compose(self) -> ComposeResult:
        """Side by side in a wide terminal, one below the other in a narrow one."""
        yield self.table
        yield self.side

    @property
    def views(self) -> list[LineView]:
        """The table alone."""
        return [self.table]

    @property
    def selected_replica(self) -> str | None:
        """Of the table."""
        return self.table.cursor

    def draw(self, board: Board, outlook: Outlook) -> None:
        """The table and the facts."""
        replicas = board.replicas(outlook.filter, outlook.sort, descending=outlook.descending)
        every = board.status.replicas if board.status else []
        wide = self.wide
        rows = replica_rows(
            replicas, self.table.glyphs, wide=wide, marked=outlook.marked, uneven=imbalanced(every), busy=outlook.busy, now=outlook.now,
        )  # fmt: skip
        self.side.display = self.size.height >= 18
        self.table.show(
            REPLICA_WIDE if wide else REPLICA_NARROW, rows, pinned=total_rows(board.status, wide=wide, models=self.size.height // 4), sort=outlook.sort,
            descending=outlook.descending,
        )  # fmt: skip
        replica = board.replica(self.selected_replica)
        if replica is None:
            self.side.show([])
            return
        facts = (
            f"{replica.id}: {replica.state}, rotation {replica.rotation or '-'}, start {replica.generation}, pid {replica.pid or '-'}, shim {replica.shim_pid or '-'}",
            f"{replica.model} on {replica.engine}, profile {replica.profile}, GPUs {', '.join(map(str, replica.gpus)) or '-'}",
            f"why: {explanation(replica, outlook.now) or '-'}",
            "enter: command, environment, percentiles, history, last lines   l: log",
        )
        self.side.show([[Cell(self.table.glyphs.rule * self.size.width, "dim")], *facts])


class GpusPane(Pane):
    """Whose memory it is, down to the process."""

    def __init__(self) -> None:
        super().__init__(id="gpus")
        self.table = RowTable(id="gpu-tree", empty="no GPU is visible to the daemon")

    def compose(self) -> ComposeResult:
        """One table."""
        yield self.table

    @property
    def selected_replica(self) -> str | None:
        """Of the branch that the cursor is on."""
        parts = (self.table.cursor or "").split("/")
        return parts[1] if len(parts) > 1 and parts[1] not in {"", "?"} else None

    @property
    def selected_gpu(self) -> str | None:
        """The GPU of the branch that the cursor is on."""
        return (self.table.cursor or "").split("/")[0] or None

    def draw(self, board: Board, outlook: Outlook) -> None:
        """The tree."""
        del outlook
        gpus, replicas = (board.status.gpus, board.status.replicas) if board.status else ([], [])
        self.table.show(TREE_COLUMNS, tree_rows(gpus, replicas, self.table.glyphs))


class LogsPane(Pane):
    """One log, or all of them as one."""

    def __init__(self, buffer: LogBuffer) -> None:
        super().__init__(id="logs")
        self.title = Line(id="log-title")
        self.view = LogView(buffer, id="log-view")

    def compose(self) -> ComposeResult:
        """Title and lines."""
        yield self.title
        yield self.view

    def draw(self, board: Board, outlook: Outlook) -> None:
        """The title; the lines draw themselves as they come."""
        del board
        name = outlook.log_source or "daemon"
        text = log_title(self.view.buffer, self.view, outlook)
        flags = f"{'wrap  ' if self.view.wrap else ''}{text}"
        self.write(self.title, ruler(f"LOG {name} (<>)", flags, self.size.width, self.view.glyphs))


class EventsPane(Pane):
    """What has happened, the newest last."""

    def __init__(self) -> None:
        super().__init__(id="events")
        self.table = RowTable(id="event-table", empty="nothing has happened yet")

    def compose(self) -> ComposeResult:
        """One table."""
        yield self.table

    @property
    def selected_replica(self) -> str | None:
        """Whom the event is about."""
        row = next((row for row in self.table.rows if row.key == self.table.cursor), None)
        return row.cells["subject"][0].text if row else None

    def draw(self, board: Board, outlook: Outlook) -> None:
        """All that pass the filter. A cursor on the last row stays on the last row."""
        rows = [event_row(event, n, outlook.now) for n, event in enumerate(board.events)]
        rows = [
            r
            for r in rows
            if outlook.filter.matches(f"{r.cells['subject'][0].text} {r.cells['text'][0].text}")
        ]
        last = not self.table.rows or self.table.position == len(self.table.rows) - 1
        self.table.show(EVENT_COLUMNS, rows)
        if last:
            self.table.to_edge(end=True)


class ProfilesPane(Pane):
    """The profiles, and how the selected one's file differs from what is applied."""

    def __init__(self) -> None:
        super().__init__(id="profiles")
        self.table = RowTable(id="profile-table", empty="no profiles")
        self.diff = TextLines(id="profile-diff")
        self.profiles: list[ProfileView] = []

    def compose(self) -> ComposeResult:
        """The list above, the difference below."""
        with Horizontal(id="profile-top"):
            yield self.table
        yield self.diff

    @property
    def selected(self) -> ProfileView | None:
        """The profile under the cursor."""
        return next((each for each in self.profiles if each.name == self.table.cursor), None)

    def draw(self, board: Board, outlook: Outlook) -> None:
        """The list; the difference is drawn by who fetched it."""
        del outlook
        replicas = board.status.replicas if board.status else []
        rows = []
        for profile in self.profiles:
            mine = [replica for replica in replicas if replica.profile == profile.name]
            rows.append(profile_row(profile, sum(r.state == "READY" for r in mine), len(mine)))
        self.table.show(PROFILE_COLUMNS, rows)
