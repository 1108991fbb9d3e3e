"""The fleet as the daemon tells it: the last status, the events, a history of figures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from gpuserve_tui.model.filters import Filter
from gpuserved.api.types import FleetEvent, ReplicaView, Status

HISTORY_SAMPLES = 300
"""Five minutes at one a second."""
EVENTS_KEPT = 1_000
SORTS = ("id", "state", "in_flight", "running", "waiting", "kv", "tok", "ttft", "restarts")


def fold(status: Status | None, event: FleetEvent) -> Status | None:
    """The fleet after one more event; None before the first snapshot."""
    if event.status is not None:
        return event.status
    if status is not None and event.generation is not None:
        status = msgspec.structs.replace(status, generation=event.generation)
    if status is None or event.replica is None:
        return status
    changed = event.replica
    replicas = [changed if r.id == changed.id else r for r in status.replicas]
    if changed.id not in {r.id for r in replicas}:
        replicas.append(changed)
    return msgspec.structs.replace(status, replicas=replicas)


@dataclass
class Series:
    """The history of one replica, or of all; None: unknown then."""

    tokens: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    """Per second."""
    waiting: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    kv_pct: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    ttft_s: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    power_w: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))


@dataclass(frozen=True)
class Trend:
    """A `Series` as it is now."""

    tokens: tuple[float | None, ...] = ()
    waiting: tuple[float | None, ...] = ()
    kv_pct: tuple[float | None, ...] = ()
    ttft_s: tuple[float | None, ...] = ()
    power_w: tuple[float | None, ...] = ()


class Board:
    """Belongs to the view state, which hands out what is immutable of it."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._events: deque[FleetEvent] = deque(maxlen=EVENTS_KEPT)
        self._unread = 0
        self._series: dict[str, Series] = {}
        """By replica; the empty name is all of them."""
        self._seen: tuple[int, float] = (0, 0.0)
        self._moved_to = 0

    @property
    def status(self) -> Status | None:
        return self._status

    @property
    def events(self) -> tuple[FleetEvent, ...]:
        """What has happened, the newest last."""
        return tuple(self._events)

    @property
    def unread(self) -> int:
        """Events that came while another screen was shown."""
        return self._unread

    def trend(self, name: str) -> Trend:
        """The last five minutes of a replica, or under the empty name of all, the newest last."""
        found = self._series.get(name)
        if found is None:
            return Trend()
        figures = (found.tokens, found.waiting, found.kv_pct, found.ttft_s, found.power_w)
        return Trend(*map(tuple, figures))

    def attached(self) -> None:
        """Connected: the next snapshot begins anew."""
        self._moved_to = 0

    def moved_to(self, generation: int) -> None:
        """A change of ours moved the fleet. An event sent before it may still be on its way, and must not move it back."""
        self._moved_to = max(self._moved_to, generation)
        if self._status is not None:
            self.known(self._status)

    def known(self, status: Status) -> None:
        """The fleet as of now, without new figures."""
        newest = max(status.generation, self._moved_to)
        self._status = (
            status if newest == status.generation else msgspec.structs.replace(status, generation=newest)
        )

    def arrived(self, status: Status) -> None:
        self.known(status)
        powers = {gpu.index: gpu.power_w for gpu in status.gpus}
        for replica in status.replicas:
            _sample(self._series.setdefault(replica.id, Series()), replica, powers)
        for gone in self._series.keys() - {replica.id for replica in status.replicas} - {""}:
            del self._series[gone]
        everything = self._series.setdefault("", Series())
        load = status.load
        everything.tokens.append(load.generation_tokens_per_s if load else None)
        everything.ttft_s.append(load.ttft_p95_s if load else None)
        everything.waiting.append(total(replica.waiting for replica in status.replicas))
        everything.power_w.append(total(powers.values()))
        usage = [r.kv_cache_pct for r in status.replicas if r.kv_cache_pct is not None]
        everything.kv_pct.append(max(usage) if usage else None)

    def noticed(self, events: Sequence[FleetEvent], *, read: bool) -> None:
        """Events of the daemon; those that were seen already (another snapshot of the past) are left out."""
        for event in events:
            if is_news(event) and (event.at, event.seq) > (self._seen[1], self._seen[0]):
                self._events.append(event)
                self._seen = (event.seq, event.at)
                self._unread += not read

    def events_read(self) -> None:
        """The Events screen is shown."""
        self._unread = 0


def is_news(event: FleetEvent) -> bool:
    """True for what the Events screen shows."""
    return event.kind == "notice" or (
        event.replica is not None and event.replica.state != event.previous_state
    )


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _sample(series: Series, replica: ReplicaView, powers: dict[int, float | None]) -> None:
    load = replica.load
    series.tokens.append(load.generation_tokens_per_s if load else None)
    series.ttft_s.append(load.ttft_p95_s if load else None)
    series.waiting.append(replica.waiting)
    series.kv_pct.append(replica.kv_cache_pct)
    series.power_w.append(total(powers.get(index) for index in replica.gpus))


def arranged(
    replicas: Sequence[ReplicaView], wanted: Filter, sort: str, *, descending: bool
) -> list[ReplicaView]:
    """The replicas a filter lets through, sorted by one of SORTS. What is unknown comes last."""
    found = [r for r in replicas if wanted.matches(*_words(r))]
    known = [r for r in found if _sort_value(r, sort) is not None]
    unknown = [r for r in found if _sort_value(r, sort) is None]
    known.sort(key=lambda r: _sort_value(r, sort), reverse=descending)  # type: ignore[arg-type, return-value]  # None is not among them
    return [*known, *unknown]


def _words(replica: ReplicaView) -> tuple[str, dict[str, tuple[str, ...]]]:
    text = " ".join(filter(None, (replica.id, replica.model, replica.state, replica.reason, replica.phase)))
    fields = {
        "state": (replica.state,),
        "gpu": tuple(str(index) for index in replica.gpus),
        "model": (replica.model,),
        "profile": (replica.profile,),
        "id": (replica.id,),
    }
    return text, fields


def _sort_value(replica: ReplicaView, sort: str) -> tuple[object, ...] | float | None:
    load = replica.load
    values: dict[str, float | None] = {
        "in_flight": replica.in_flight,
        "running": replica.running,
        "waiting": replica.waiting,
        "kv": replica.kv_cache_pct,
        "tok": load.generation_tokens_per_s if load else None,
        "ttft": load.ttft_p95_s if load else None,
        "restarts": replica.restarts,
    }
    if sort in values:
        return values[sort]
    profile, _, number = replica.id.rpartition("-")
    name = (profile, int(number) if number.isdigit() else 0)
    return (replica.state, *name) if sort == "state" else name
