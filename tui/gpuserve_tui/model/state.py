"""What the screen shows and how the operator has arranged it. One object changes it; everybody else reads `View`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from gpuserve_tui.cells import age
from gpuserve_tui.model.actions import Selection, Situation, unavailable
from gpuserve_tui.model.board import SORTS, Board, Trend, arranged
from gpuserve_tui.model.changes import DOING, Intent
from gpuserve_tui.model.filters import Filter
from gpuserved.api.types import FleetEvent, GpuView, ReplicaView, Status

SILENT_S = 5.0
"""A connected daemon sends figures every second; after this long without any they are old, and nothing is decided on them."""
FASTEST_S = 0.25
SLOWEST_S = 16.0
_NAMES = ("id", "state")
"""Sorted by these the first comes first; figures are looked at for their largest."""


@dataclass(frozen=True)
class Arrangement:
    """How the operator has arranged the screen."""

    pane: str = "overview"
    frozen: bool = False
    """The display is held; data goes on arriving."""
    filter: Filter = field(default_factory=Filter)
    sort: str = "id"
    descending: bool = False
    marked: frozenset[str] = frozenset()
    """Ids of replicas that the next action means."""
    trends_of_all: bool = False
    refresh_s: float = 1.0


@dataclass(frozen=True)
class View:
    """Everything there is to draw, at one moment. Nothing in it changes."""

    status: Status | None
    events: tuple[FleetEvent, ...]
    unread: int
    arrangement: Arrangement
    busy: Mapping[str, str]
    """Replica -> what an action of ours is doing to it."""
    lost: str | None
    """Why no daemon answers; None: one does."""
    age_s: float
    """Since the daemon was heard last."""
    stale: str
    """Why nothing may be decided on the data; empty: it is fresh."""
    read_only: str
    """Why nothing may be changed from here; empty: it may."""
    now: float
    """Unix seconds."""

    @property
    def replicas(self) -> Sequence[ReplicaView]:
        return self.status.replicas if self.status else ()

    @property
    def gpus(self) -> Sequence[GpuView]:
        return self.status.gpus if self.status else ()

    @property
    def shown_replicas(self) -> Sequence[ReplicaView]:
        """Those that the filter lets through, sorted."""
        how = self.arrangement
        return arranged(self.replicas, how.filter, how.sort, descending=how.descending)

    def replica(self, name: str | None) -> ReplicaView | None:
        return next((replica for replica in self.replicas if replica.id == name), None)

    def gpu(self, uuid: str | None) -> GpuView | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)

    def situation(self, selected: Selection) -> Situation:
        """What decides which actions are possible on what is selected."""
        names = self.arrangement.marked or {selected.replica}
        found = tuple(replica for replica in self.replicas if replica.id in names)
        pane = self.arrangement.pane
        profile = found[0].profile if found and pane != "profiles" else selected.profile
        return Situation(
            pane, not self.stale, self.stale, self.read_only, found, profile, frozenset(self.busy),
            self.gpu(selected.gpu),
        )  # fmt: skip


class ViewState:
    """The owner of all of it. Methods say what has happened, or what the operator wants."""

    def __init__(
        self, *, pane: str, read_only: str, refresh_s: float, clock: Callable[[], float], monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        """:param read_only: why nothing may be changed from here; empty: the daemon decides."""
        self._clock = clock
        self._monotonic = monotonic
        self._board = Board()
        self._arrangement = Arrangement(pane=pane, refresh_s=refresh_s)
        self._read_only = read_only
        self._lost: str | None = None
        self._heard_at = monotonic()
        self._busy: dict[str, tuple[str, float]] = {}
        """Replica -> what is being done to it, and since when (monotonic seconds)."""

    # --- read

    @property
    def view(self) -> View:
        now = self._monotonic()
        age_s = now - self._heard_at
        stale = ""
        if self._lost is not None or self._board.status is None:
            stale = "not connected to the daemon"
        elif age_s > SILENT_S:
            stale = f"the data is {age(age_s)} old"
        busy = {name: f"{what} {now - since:.0f}s" for name, (what, since) in self._busy.items()}
        return View(
            self._board.status, self._board.events, self._board.unread, self._arrangement, MappingProxyType(busy), self._lost,
            age_s, stale, self._read_only, self._clock(),
        )  # fmt: skip

    @property
    def status(self) -> Status | None:
        return self._board.status

    @property
    def lost(self) -> str | None:
        return self._lost

    @property
    def arrangement(self) -> Arrangement:
        return self._arrangement

    @property
    def pane(self) -> str:
        return self._arrangement.pane

    @property
    def replica_names(self) -> Sequence[str]:
        return [replica.id for replica in self._board.status.replicas] if self._board.status else []

    def trend(self, replica: str) -> Trend:
        return self._board.trend(replica)

    # --- what the daemon says

    def attached(self, *, may_operate: bool) -> None:
        self._lost = None
        self._board.attached()
        if not self._read_only and not may_operate:
            self._read_only = "this user may only look"

    def disconnected(self, why: str) -> None:
        self._lost = why

    def noticed(self, past: Sequence[FleetEvent], fresh: Sequence[FleetEvent]) -> None:
        """Events from before the connection, and new ones."""
        self._board.noticed(past, read=True)
        self._board.noticed(fresh, read=self.pane == "events")

    def heard(self, status: Status, *, fresh: bool) -> None:
        """The fleet as it is now.

        :param fresh: it has figures of a new second.
        """
        self._lost = None
        self._heard_at = self._monotonic()
        if fresh:
            self._board.arrived(status)
        else:
            self._board.known(status)

    # --- what the operator wants to see

    def _arrange(self, **changed: object) -> None:
        self._arrangement = dataclasses.replace(self._arrangement, **changed)  # type: ignore[arg-type]  # checked by the callers below

    def show(self, pane: str) -> None:
        """Another screen; it is not frozen."""
        self._arrange(pane=pane, frozen=False)
        if pane == "events":
            self._board.events_read()

    def toggle_frozen(self) -> None:
        """Hold the display, or let it go on."""
        self._arrange(frozen=not self._arrangement.frozen)

    def toggle_trends(self) -> None:
        self._arrange(trends_of_all=not self._arrangement.trends_of_all)

    def filter_by(self, wanted: Filter) -> None:
        self._arrange(filter=wanted)

    def sort_by(self, column: str) -> None:
        """By a column of SORTS; the same one again: the other way round. Others do not sort."""
        if column == self._arrangement.sort:
            self.reverse()
        elif column in SORTS:
            self._arrange(sort=column, descending=column not in _NAMES)

    def sort_by_next(self) -> None:
        column = SORTS[(SORTS.index(self._arrangement.sort) + 1) % len(SORTS)]
        self._arrange(sort=column, descending=column not in _NAMES)

    def reverse(self) -> None:
        self._arrange(descending=not self._arrangement.descending)

    def toggle_mark(self, replica: str) -> None:
        """Mark a replica, or unmark it."""
        self._arrange(marked=self._arrangement.marked ^ {replica})

    def clear_marks(self) -> None:
        self._arrange(marked=frozenset())

    def pace(self, factor: float) -> None:
        refresh_s = min(SLOWEST_S, max(FASTEST_S, self._arrangement.refresh_s * factor))
        self._arrange(refresh_s=refresh_s)

    # --- what the operator changes

    def refusal(self, intent: Intent) -> str:
        """Why a change cannot be carried out any more; empty: it can."""
        now = self.view.situation(Selection())
        if not now.live or now.read_only:
            return unavailable(intent.action, dataclasses.replace(now, pane=intent.action.panes[0]))
        busy = [name for name, _ in intent.targets if name in self._busy]
        return f"{busy[0]} is being acted on" if busy else ""

    def begin(self, intent: Intent) -> None:
        """A change is on its way to the daemon: its replicas take no other."""
        for name, _ in intent.targets:
            self._busy[name] = (DOING.get(intent.action.id, intent.action.id), self._monotonic())

    def end(self, intent: Intent, generation: int | None = None) -> None:
        """It has come back.

        :param generation: what it moved the fleet to; None: it was refused, or lost.
        """
        for name, _ in intent.targets:
            self._busy.pop(name, None)
        if generation is not None:
            self._board.moved_to(generation)
