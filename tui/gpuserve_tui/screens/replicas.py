"""Replicas: what keys do to them wherever they are rows, and the screen with every column of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

from textual.app import ComposeResult

from gpuserve_tui.cells import Cell, plain
from gpuserve_tui.model.actions import BY_ID, Action, Selection, unavailable
from gpuserve_tui.model.changes import Intent, question, replica_intent, scale_intent
from gpuserve_tui.model.state import View
from gpuserve_tui.palette import Offer
from gpuserve_tui.screens.pane import Commands, Pane, Session
from gpuserve_tui.view.replicas import (
    REPLICA_NARROW,
    REPLICA_WIDE,
    explanation,
    imbalanced,
    replica_rows,
    total_rows,
)
from gpuserve_tui.widgets.lines import LineView, TextLines
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import ReplicaView

_VERBS = ("start", "stop", "restart", "drain", "undrain")


class ReplicaPane(Pane):
    """A screen whose keys change replicas."""

    @property
    def commands(self) -> Commands:
        return {
            **super().commands,
            **{verb: partial(self.act, BY_ID[verb]) for verb in _VERBS},
            "scale_up": partial(self._scale, BY_ID["scale_up"]),
            "scale_down": partial(self._scale, BY_ID["scale_down"]),
        }

    def act(self, action: Action, targets: Sequence[ReplicaView] | None = None) -> None:
        """Start, stop, restart, drain, undrain.

        :param targets: None: the marked rows, or the selected one.
        """
        view = self.state.view
        chosen = view.situation(self.selection).targets if targets is None else targets
        if view.status is None:
            return
        intent = replica_intent(action, view.status, chosen)
        if intent.targets:
            self.propose(intent, question(intent, view.status))

    def _scale(self, action: Action) -> None:
        view = self.state.view
        profile = view.situation(self.selection).profile
        if view.status is not None and profile is not None:
            intent = scale_intent(action, view.status, profile)
            self.propose(intent, question(intent, view.status))

    def carried_out(self, intent: Intent) -> None:
        """The marks meant this change, and no later one."""
        if intent.gpu is None:
            self.state.clear_marks()


class ReplicaTablePane(ReplicaPane):
    """A screen with a table of replicas, to mark and to sort."""

    replicas: RowTable

    @property
    def commands(self) -> Commands:
        return {
            **super().commands,
            "mark": self._mark,
            "sort": self.redrawn(self.state.sort_by_next),
            "reverse": self.redrawn(self.state.reverse),
        }

    @property
    def selection(self) -> Selection:
        """Of the table of replicas, whatever has the keys."""
        return Selection(replica=self.replicas.cursor)

    def draw_replicas(self, view: View, shown: Sequence[ReplicaView], models: int) -> None:
        """The table.

        :param models: how many models have room for a row of their own below.
        """
        how, wide = view.arrangement, self.wide
        rows = replica_rows(
            shown, self.replicas.glyphs, wide=wide, marked=how.marked, uneven=imbalanced(view.replicas), busy=view.busy,
            now=view.now,
        )  # fmt: skip
        self.replicas.show(
            REPLICA_WIDE if wide else REPLICA_NARROW, rows, pinned=total_rows(view.status, wide=wide, models=models),
            sort=how.sort, descending=how.descending,
        )  # fmt: skip

    def _mark(self) -> None:
        """Mark the row, or unmark it, and go on to the next."""
        name = self.selection.replica
        if name is not None:
            self.state.toggle_mark(name)
            self.move(1)
            self.redraw()

    def on_row_table_header_clicked(self, message: RowTable.HeaderClicked) -> None:
        """A header sorts by its column; again: the other way round."""
        self.state.sort_by(message.column)
        self.redraw()


class ReplicasPane(ReplicaTablePane):
    """Every column of every replica, and below it what is known of the selected one."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="replicas")
        self.replicas = RowTable(session.look, id="replica-table", empty="no replica matches")
        self.side = TextLines(session.look, id="replica-side")
        self.side.can_focus = False

    def compose(self) -> ComposeResult:
        yield self.replicas
        yield self.side

    @property
    def views(self) -> list[LineView]:
        return [self.replicas]

    def draw(self, view: View) -> None:
        self.side.display = self.size.height >= 18
        self.draw_replicas(view, view.shown_replicas, self.size.height // 4)
        replica = view.replica(self.selection.replica)
        if replica is None:
            self.side.show([])
            return
        facts = (
            f"{replica.id}: {replica.state}, rotation {replica.rotation or '-'}, start {replica.generation}, pid {replica.pid or '-'}, shim {replica.shim_pid or '-'}",
            f"{replica.model} on {replica.engine}, profile {replica.profile}, GPUs {', '.join(map(str, replica.gpus)) or '-'}",
            f"why: {explanation(replica, view.now) or '-'}",
            "enter: command, environment, percentiles, history, last lines   l: log",
        )
        self.side.show([[Cell(self.replicas.glyphs.rule * self.size.width, "dim")], *facts])

    def offers(self, view: View) -> Iterator[Offer]:
        """Acts on each replica by its name, its log, and everything about it."""
        now = view.situation(Selection())
        for replica in view.replicas:
            name = plain(replica.id)
            one = dataclasses.replace(now, pane="overview", targets=(replica,))
            for action in (BY_ID[verb] for verb in _VERBS):
                if not unavailable(action, one):
                    yield Offer(f"{action.id} {name}", action.help, partial(self.act, action, (replica,)))
            yield Offer(f"logs {name}", "its log", partial(self.show_log, replica.id))
            yield Offer(f"detail {name}", "everything about it", partial(self.show_replica, replica.id))

    def on_row_table_highlighted(self) -> None:
        self.redraw(soon=True)
