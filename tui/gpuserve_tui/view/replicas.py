"""Replicas as rows of a table, and what stands under them: a row for each model with its queue in the router, one for everything."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell, Glyphs
from gpuserve_tui.model.board import total
from gpuserve_tui.view.layout import Column, Row
from gpuserved.api.types import LoadView, ModelView, ReplicaView, Status

STATE_ROLES = {
    "READY": "ok", "STARTING": "info", "DRAINING": "warn", "STOPPING": "warn", "UNHEALTHY": "err", "BACKOFF": "warn",
    "FAILED": "err", "STOPPED": "dim",
}  # fmt: skip
STATE_MARKS = {
    "READY": "●", "STARTING": "◐", "DRAINING": "▽", "STOPPING": "▽", "UNHEALTHY": "!", "BACKOFF": "◌", "FAILED": "✖",
    "STOPPED": "○",
}  # fmt: skip
KV_FULL_PCT = 95.0
"""vLLM preempts when the cache is full; this is the last moment to see it coming."""
PREEMPTIONS_HIGH = 1.0
"""A minute: each one is a request computed twice."""
IMBALANCE = 2.0
"""A replica with this many times the median of its model's in-flight requests is marked."""
IMBALANCE_MIN = 8
"""Below so many requests chance alone makes such ratios."""
REPLICA_WIDE: Sequence[Column] = (
    Column("id", "Name", 14, grow=16),
    Column("state", "State", 12),
    Column("rotation", "Rot", 4, rank=3),
    Column("gpus", "GPUs", 5),
    Column("in_flight", "Fly", 4, right=True),
    Column("running", "Run", 4, right=True),
    Column("waiting", "Wait", 5, right=True),
    Column("kv", "KV%", 12, right=True),
    Column("tok", "tok/s", 5, right=True),
    Column("ttft", "TTFT p50/p95", 13, right=True),
    Column("itl", "ITL p95", 7, right=True, rank=2),
    Column("prefix", "Pfx%", 4, right=True, rank=4),
    Column("preempt", "Pre/m", 5, right=True, rank=1),
    Column("restarts", "Rst", 4, right=True, rank=5),
    Column("up", "Up", 6, right=True, rank=6),
)
REPLICA_NARROW: Sequence[Column] = (
    Column("id", "Name", 12, grow=10),
    Column("state", "State", 9),
    Column("gpus", "GPU", 4, rank=4),
    Column("in_flight", "Fly", 4, right=True, rank=5),
    Column("running", "Run", 4, right=True),
    Column("waiting", "Wait", 5, right=True),
    Column("kv", "KV%", 4, right=True),
    Column("tok", "tok/s", 5, right=True, rank=1),
    Column("ttft", "TTFT95", 7, right=True, rank=2),
    Column("itl", "ITL95", 5, right=True, rank=3),
)


def replica_rows(
    replicas: Sequence[ReplicaView], glyphs: Glyphs, *, wide: bool, marked: frozenset[str], uneven: frozenset[str],
    busy: Mapping[str, str], now: float,
) -> list[Row]:  # fmt: skip
    """One row per replica.

    :param busy: what an action of ours is doing to a replica, by its id.
    """
    return [
        _replica_row(r, glyphs, wide, r.id in marked, r.id in uneven, busy.get(r.id), now) for r in replicas
    ]


def _replica_row(
    r: ReplicaView, glyphs: Glyphs, wide: bool, marked: bool, uneven: bool, doing: str | None, now: float
) -> Row:
    state = doing or r.state.lower()
    if wide and not doing and glyphs is c.UNICODE:
        state += f" {STATE_MARKS.get(r.state, '')}"
    flight = c.count(r.in_flight) + ("^" if uneven else "")
    kv = r.kv_cache_pct
    full = (kv or 0.0) >= KV_FULL_PCT
    kv_text = c.count(kv)
    if wide and kv is not None:
        kv_text = f"{c.bar(kv / 100, 8, glyphs)}{kv_text:>4}"
    values = {
        "id": (Cell((glyphs.mark if marked else "") + c.plain(r.id), "mark" if marked else ""),),
        "state": (Cell(state, STATE_ROLES.get(r.state, "")),),
        "rotation": (Cell(_rotation(r), "" if r.rotation in {"in", None} else "warn"),),
        "gpus": (Cell(",".join(map(str, r.gpus)) or c.UNKNOWN),),
        "in_flight": (Cell(flight, "warn" if uneven else ""),),
        "running": (Cell(c.count(r.running)),),
        "waiting": (Cell(c.count(r.waiting), "warn" if (r.waiting or 0) > 0 else ""),),
        "kv": (Cell(kv_text + ("!" if full and not wide else ""), "err" if full else ""),),
        "restarts": (Cell(str(r.restarts), "warn" if r.restarts else ""),),
        "up": (Cell(c.age(now - r.started_at) if r.started_at else c.UNKNOWN),),
        **load_cells(r.load, wide=wide),
    }
    why = explanation(r, now)
    role = STATE_ROLES.get(r.state, "") if r.state in {"FAILED", "BACKOFF", "UNHEALTHY"} else "dim"
    tail = Cell(why, role) if why and r.state not in {"READY", "DRAINING", "UNHEALTHY"} else None
    return Row(r.id, values, tail, "in_flight" if wide else "running", "restarts" if wide else "")


def _rotation(r: ReplicaView) -> str:
    return {"probation": "prob", "ejected": "ejec", None: c.UNKNOWN}.get(r.rotation, r.rotation or "")


def load_cells(load: LoadView | None, *, wide: bool) -> dict[str, tuple[Cell, ...]]:
    """The figures of the last minute."""
    load = load or LoadView()
    first, late = c.milliseconds(load.ttft_p50_s), c.milliseconds(load.ttft_p95_s)
    ttft = f"{first}/{late:>5}ms" if wide and load.ttft_p95_s is not None else late
    itl = c.milliseconds(load.itl_p95_s) + ("ms" if wide and load.itl_p95_s is not None else "")
    preempted = (load.preemptions_per_min or 0.0) >= PREEMPTIONS_HIGH
    return {
        "tok": (Cell(c.short(load.generation_tokens_per_s)),),
        "ttft": (Cell(ttft),),
        "itl": (Cell(itl),),
        "prefix": (Cell(c.count(load.prefix_hit_pct)),),
        "preempt": (
            Cell(c.count(load.preemptions_per_min) + ("!" if preempted else ""), "err" if preempted else ""),
        ),
    }


def explanation(r: ReplicaView, now: float) -> str:
    """Why a replica is where it is, in one line."""
    since = c.age(max(0.0, now - r.state_since)) if r.state_since else ""
    if r.state == "STARTING":
        return ", ".join(filter(None, (c.plain(r.phase or "starting"), since)))
    return c.plain(r.reason) if r.reason else ""


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


def total_rows(status: Status | None, *, wide: bool, models: int) -> list[Row]:
    """The rows of some models, in the order of their names, then the one of everything. Percentiles come merged from the daemon.

    :param models: how many have room; those with the longest queues are shown.
    """
    if status is None:
        return [_all(None, wide=wide)]
    return [*(_model(model, wide=wide) for model in busiest(status.models, models)), _all(status, wide=wide)]


def busiest(models: Sequence[ModelView], count: int) -> list[ModelView]:
    """The `count` models with most requests in the queue, or else under way, in their own order. One alone is everything."""
    if len(models) < 2:
        return []
    ranked = sorted(models, key=lambda m: (m.queued or 0, m.in_flight or 0), reverse=True)[: max(0, count)]
    return [model for model in models if model in ranked]


def queueing(models: Iterable[ModelView]) -> int:
    """How many models have requests in the router's queue."""
    return sum((model.queued or 0) > 0 for model in models)


def _model(model: ModelView, *, wide: bool) -> Row:
    values = (model.queued, model.in_flight, model.running, model.waiting)
    return _row(f"all {c.plain(model.name)}", "", values, model.load, wide=wide)


def _all(status: Status | None, *, wide: bool) -> Row:
    replicas = status.replicas if status else []
    router = status.router if status else None
    running = total(replica.running for replica in replicas)
    waiting = total(replica.waiting for replica in replicas)
    values = (router.queued if router else None, router.in_flight if router else None, running, waiting)
    restarts = sum(r.restarts for r in replicas)
    return _row("ALL", "bold", values, status.load if status else None, wide=wide, restarts=restarts)


def _row(
    name: str, role: str, values: tuple[float | None, ...], load: LoadView | None, *, wide: bool, restarts: int | None = None,
) -> Row:  # fmt: skip
    queued, in_flight, running, waiting = values
    return Row(
        name,
        {
            "id": (Cell(name, role),),
            "state": (Cell(f"queue {c.count(queued)}", "warn" if queued else "dim"),),
            "in_flight": (Cell(c.count(in_flight), role),),
            "running": (Cell(c.count(running), role),),
            "waiting": (Cell(c.count(waiting), role),),
            **({} if restarts is None else {"restarts": (Cell(str(restarts), role),)}),
            **load_cells(load, wide=wide),
        },
    )
