"""The Profiles screen: what is applied, what the files say now, and what applying them would do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from textual.app import ComposeResult
from textual.containers import Horizontal

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell
from gpuserve_tui.model.actions import BY_ID, Selection
from gpuserve_tui.model.changes import Intent, about_apply
from gpuserve_tui.model.state import View
from gpuserve_tui.screens.pane import Commands, Pane, Session
from gpuserve_tui.view import texts
from gpuserve_tui.view.layout import Column, Row
from gpuserve_tui.widgets.lines import TextLines
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.inspect import ProfilesView, ProfileView
from gpuserved.api.types import ApplyResult

COLUMNS: Sequence[Column] = (
    Column("name", "Profile", 16, grow=10),
    Column("state", "State", 14),
    Column("replicas", "Replicas", 12, rank=1),
    Column("model", "Model", 20, grow=40),
)


class ProfilesPane(Pane):
    """The profiles, and how the selected one's file differs from what is applied."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, id="profiles")
        self.table = RowTable(session.look, id="profile-table", empty="no profiles")
        self.diff = TextLines(session.look, id="profile-diff")
        self._profiles: tuple[ProfileView, ...] = ()

    def compose(self) -> ComposeResult:
        with Horizontal(id="profile-top"):
            yield self.table
        yield self.diff

    @property
    def commands(self) -> Commands:
        return {**super().commands, "apply": self._apply}

    @property
    def profiles(self) -> tuple[ProfileView, ...]:
        """As they were fetched last."""
        return self._profiles

    @property
    def selected(self) -> ProfileView | None:
        return next((each for each in self._profiles if each.name == self.table.cursor), None)

    @property
    def selection(self) -> Selection:
        return Selection(profile=self.selected.name if self.selected else None)

    def shown(self) -> None:
        """What the files say may have changed."""
        self.fetch()

    def fetch(self) -> None:
        self.call(self.session.client.profiles, self._fetched)

    def _fetched(self, found: ProfilesView) -> None:
        self._profiles = tuple(found.profiles)
        self._draw_difference()
        self.redraw()

    def detail(self) -> None:
        """The whole text of the selected profile."""
        profile = self.selected
        if profile is not None:
            self.read(f"{profile.name}: {profile.source}", texts.profile(profile))

    def _apply(self) -> None:
        """Fetch what it would do first. The generation is the one that was seen at the key press."""
        profile, status = self.selected, self.state.status
        if profile is None or status is None:
            return
        intent = Intent(BY_ID["apply"], status.generation, profile=profile.name)
        self.call(
            partial(self.session.client.profile_diff, profile.name), partial(self._ask, intent, profile)
        )

    def _ask(self, intent: Intent, profile: ProfileView, plan: ApplyResult) -> None:
        self.propose(intent, about_apply(profile, plan))

    def carried_out(self, intent: Intent) -> None:
        del intent
        self.fetch()

    def draw(self, view: View) -> None:
        """The list; the difference is drawn when it is another."""
        rows = []
        for profile in self._profiles:
            mine = [replica for replica in view.replicas if replica.profile == profile.name]
            rows.append(profile_row(profile, sum(r.state == "READY" for r in mine), len(mine)))
        self.table.show(COLUMNS, rows)

    def on_row_table_highlighted(self) -> None:
        self._draw_difference()

    def _draw_difference(self) -> None:
        profile = self.selected
        self.diff.show(texts.difference(profile) if profile else [])


def profile_row(profile: ProfileView, ready: int, replicas: int) -> Row:
    """One profile: applied or not, changed on disk or not."""
    state, role = "applied", "ok"
    if profile.error:
        state, role = "file is wrong", "err"
    elif profile.applied_text is None:
        state, role = "not applied", "dim"
    elif profile.differs:
        state, role = "file changed *", "warn"
    wanted = "auto" if profile.replicas is None else str(profile.replicas)
    figures = f"{ready}/{replicas} ready" if profile.applied_text is not None else wanted
    return Row(
        profile.name,
        {
            "name": (Cell(c.plain(profile.name)),),
            "state": (Cell(state, role),),
            "replicas": (Cell(figures + (" scaled" if profile.scaled else "")),),
            "model": (Cell(c.plain(profile.model or c.UNKNOWN)),),
        },
    )
