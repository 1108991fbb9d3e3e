"""What the screen knows: the last status, the events, a history of figures. Pure: data in, views out."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from gpuserve_tui.view.cells import gib
from gpuserve_tui.view.filters import Filter
from gpuserve_tui.view.rollouts import outcome
from gpuserved.api.types import FleetEvent, GpuOwner, GpuView, ReplicaView, Status

HISTORY_SAMPLES = 300
"""Five minutes at one a second."""
EVENTS_KEPT = 1_000
KV_FULL_PCT = 95.0
"""vLLM preempts when the cache is full; this is the last moment to see it coming."""
PREEMPTIONS_HIGH = 1.0
"""A minute: each one is a request computed twice."""
FOREIGN_MIN_BYTES = 1024**3
"""Less foreign memory than this changes no plan: a desktop or a context has some hundred MiB."""
IMBALANCE = 2.0
"""A replica with this many times the median of its model's in-flight requests is marked."""
IMBALANCE_MIN = 8
"""Below so many requests chance alone makes such ratios."""
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


@dataclass(frozen=True)
class Alert:
    """Something to look at now."""

    severity: str
    text: str


@dataclass
class Series:
    """The history of one replica, or of all."""

    tokens: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    waiting: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    kv_pct: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    ttft_s: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))
    power_w: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY_SAMPLES))


class Board:
    """Belongs to the app; panes read it."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.events: deque[FleetEvent] = deque(maxlen=EVENTS_KEPT)
        self.unread = 0
        self.series: dict[str, Series] = {}
        """By replica; the empty name is all of them."""
        self._seen: tuple[int, float] = (0, 0.0)
        self._moved_to = 0

    def attached(self) -> None:
        """Connected: the next snapshot begins anew."""
        self._moved_to = 0

    def moved_to(self, generation: int) -> None:
        """A change of ours moved the fleet. An event sent before it may still be on its way, and must not move it back."""
        self._moved_to = max(self._moved_to, generation)
        if self.status is not None:
            self.known(self.status)

    def known(self, status: Status) -> None:
        """The fleet as of now, without new figures."""
        newest = max(status.generation, self._moved_to)
        self.status = (
            status if newest == status.generation else msgspec.structs.replace(status, generation=newest)
        )

    def arrived(self, status: Status) -> None:
        """A whole status, with figures."""
        self.known(status)
        powers = {gpu.index: gpu.power_w for gpu in status.gpus}
        for replica in status.replicas:
            _sample(self.series.setdefault(replica.id, Series()), replica, powers)
        known = {replica.id for replica in status.replicas} | {""}
        for gone in self.series.keys() - known:
            del self.series[gone]
        everything = self.series.setdefault("", Series())
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
                self.events.append(event)
                self._seen = (event.seq, event.at)
                self.unread += not read

    def gpu(self, uuid: str | None) -> GpuView | None:
        """One GPU as it is now."""
        gpus = self.status.gpus if self.status else []
        return next((gpu for gpu in gpus if gpu.uuid == uuid), None)

    def replica(self, name: str | None) -> ReplicaView | None:
        """One replica by id."""
        replicas = self.status.replicas if self.status else []
        return next((replica for replica in replicas if replica.id == name), None)

    def replicas(self, wanted: Filter, sort: str, *, descending: bool) -> list[ReplicaView]:
        """The replicas a filter lets through, sorted. What is unknown comes last."""
        found = [r for r in (self.status.replicas if self.status else []) if wanted.matches(*_words(r))]
        known = [r for r in found if _sort_value(r, sort) is not None]
        unknown = [r for r in found if _sort_value(r, sort) is None]
        known.sort(key=lambda r: _sort_value(r, sort), reverse=descending)  # type: ignore[arg-type, return-value]  # None is not among them
        return [*known, *unknown]


def is_news(event: FleetEvent) -> bool:
    """True for what the Events screen shows."""
    return event.kind == "notice" or (
        event.replica is not None and event.replica.state != event.previous_state
    )


def total(values: object) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return sum(known) if known else None


def _sample(series: Series, replica: ReplicaView, powers: dict[int, float | None]) -> None:
    load = replica.load
    series.tokens.append(load.generation_tokens_per_s if load else None)
    series.ttft_s.append(load.ttft_p95_s if load else None)
    series.waiting.append(replica.waiting)
    series.kv_pct.append(replica.kv_cache_pct)
    series.power_w.append(total(powers.get(index) for index in replica.gpus))


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


def imbalanced(replicas: Sequence[ReplicaView]) -> frozenset[str]:
    """Replicas with far more requests than the median of their model's ready ones.

    The median, not the least: one idle replica would make all others look overloaded.
    """
    by_model: dict[str, list[ReplicaView]] = {}
    for replica in replicas:
        if replica.state == "READY" and replica.in_flight is not None:
            by_model.setdefault(replica.model, []).append(replica)
    found: set[str] = set()
    for group in by_model.values():
        if len(group) < 3:
            continue
        middle = statistics.median(replica.in_flight or 0 for replica in group)
        found |= {
            r.id for r in group if (r.in_flight or 0) >= max(IMBALANCE_MIN, IMBALANCE * max(middle, 1.0))
        }
    return frozenset(found)


def foreign(gpu: GpuView) -> list[GpuOwner]:
    """Processes on a GPU that are not ours."""
    return [owner for owner in gpu.owners if owner.replica is None]


def foreign_bytes(gpu: GpuView) -> int:
    """What they hold, as far as it is known."""
    return sum(owner.memory_bytes or 0 for owner in foreign(gpu))


def alerts(status: Status) -> list[Alert]:
    """What is wrong now, the worst first."""
    found: list[Alert] = []
    if status.supervisor.degraded:
        found.append(Alert("error", f"degraded: {status.supervisor.degraded}"))
    if status.replicas and status.router.in_flight is None:
        found.append(Alert("error", "no router answers"))
    found += [_of_gpu(gpu) for gpu in status.gpus if gpu.state != "OK"]
    down = [replica.id for replica in status.replicas if replica.state in {"FAILED", "UNHEALTHY"}]
    if down:
        more = f" and {len(down) - 2} more" if len(down) > 2 else ""
        found.append(Alert("error", f"{', '.join(down[:2])}{more} down"))
    found += [Alert("error", text) for text in map(_alien, status.gpus) if text]
    found += [Alert("warning", text) for text in map(_pressed, status.replicas) if text]
    ended = [(roll.outcome, outcome(roll)) for roll in status.rollouts]
    found += [Alert("error" if how == "stopped" else "warning", text) for how, text in ended if text]
    waiting = [replica.id for replica in status.replicas if replica.state == "BACKOFF"]
    if waiting:
        found.append(
            Alert("warning", f"{', '.join(waiting[:2])}{'…' if len(waiting) > 2 else ''} in backoff")
        )
    return found


def _of_gpu(gpu: GpuView) -> Alert:
    return Alert("error", f"GPU {gpu.index} {gpu.state}")


def _alien(gpu: GpuView) -> str:
    if foreign_bytes(gpu) < FOREIGN_MIN_BYTES:
        return ""
    worst = max(foreign(gpu), key=lambda owner: owner.memory_bytes or 0)
    who = ", ".join(filter(None, (worst.user, worst.command)))
    return f"GPU {gpu.index}: {gib(foreign_bytes(gpu))} GiB of pid {worst.pid}{f' ({who})' if who else ''}, not ours"


def _pressed(replica: ReplicaView) -> str:
    preemptions = (replica.load.preemptions_per_min if replica.load else None) or 0.0
    parts = []
    if (replica.kv_cache_pct or 0.0) >= KV_FULL_PCT:
        parts.append(f"KV {replica.kv_cache_pct:.0f}%")
    if preemptions >= PREEMPTIONS_HIGH:
        parts.append(f"{preemptions:.0f} preemptions/min")
    return f"{replica.id} {' + '.join(parts)}" if parts else ""
