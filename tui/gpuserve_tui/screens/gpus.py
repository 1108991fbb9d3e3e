"""The GPUs screen: whose memory it is, down to the process; a GPU is set aside and released here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

from textual.app import ComposeResult

from gpuserve_tui.model.actions import BY_ID, Action, Selection, unavailable
from gpuserve_tui.model.changes import Intent, about_gpu
from gpuserve_tui.model.state import View
from gpuserve_tui.palette import Offer
from gpuserve_tui.screens.pane import Commands, Session
from gpuserve_tui.screens.replicas import ReplicaPane
from gpuserve_tui.view.gpus import TREE_COLUMNS, tree_rows
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import GpuView


class GpusPane(ReplicaPane):
    """GPU, replica, process."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="gpus")
        self.table = RowTable(session.look, id="gpu-tree", empty="no GPU is visible to the daemon")

    def compose(self) -> ComposeResult:
        yield self.table

    @property
    def commands(self) -> Commands:
        return {
            **super().commands,
            "quarantine": partial(self.change_gpu, BY_ID["quarantine"]),
            "release": partial(self.change_gpu, BY_ID["release"]),
        }

    @property
    def selection(self) -> Selection:
        """GPU and replica of the branch that the cursor is on."""
        gpu, *rest = (self.table.cursor or "").split("/")
        return Selection(rest[0] if rest and rest[0] not in {"", "?"} else None, gpu or None)

    def change_gpu(self, action: Action, gpu: GpuView | None = None) -> None:
        """Set a GPU aside, or let it be used again: the given one, or the selected one."""
        view = self.state.view
        chosen = gpu or view.gpu(self.selection.gpu)
        if view.status is not None and chosen is not None:
            intent = Intent(action, view.status.generation, gpu=chosen.uuid)
            self.propose(intent, about_gpu(action, chosen, view.status))

    def offers(self, view: View) -> Iterator[Offer]:
        now = view.situation(Selection())
        for gpu in view.gpus:
            one = dataclasses.replace(now, pane="gpus", gpu=gpu)
            for action in (BY_ID["quarantine"], BY_ID["release"]):
                if not unavailable(action, one):
                    yield Offer(
                        f"{action.id} GPU {gpu.index}", action.help, partial(self.change_gpu, action, gpu)
                    )

    def detail(self) -> None:
        if self.state.view.replica(self.selection.replica) is None:
            self.say("the cursor is on no replica")
        else:
            super().detail()

    def draw(self, view: View) -> None:
        self.table.show(TREE_COLUMNS, tree_rows(view.gpus, view.replicas, self.table.glyphs))
