"""GPUs, replicas, events and profiles as rows of tables."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gpuserve_tui.view import cells as c
from gpuserve_tui.view.board import KV_FULL_PCT, PREEMPTIONS_HIGH, foreign, foreign_bytes
from gpuserve_tui.view.cells import Cell, Glyphs
from gpuserve_tui.view.columns import Column, Row
from gpuserved.api.types import GpuView, LoadView, ReplicaView

STATE_ROLES = {
    "READY": "ok", "STARTING": "info", "DRAINING": "warn", "STOPPING": "warn", "UNHEALTHY": "err", "BACKOFF": "warn",
    "FAILED": "err", "STOPPED": "dim",
}  # fmt: skip
STATE_MARKS = {
    "READY": "●", "STARTING": "◐", "DRAINING": "▽", "STOPPING": "▽", "UNHEALTHY": "!", "BACKOFF": "◌", "FAILED": "✖",
    "STOPPED": "○",
}  # fmt: skip
HOT_C = 85.0
"""Where data-centre cards begin to slow themselves down."""

GPU_WIDE: Sequence[Column] = (
    Column("index", "#", 3, right=True),
    Column("util", "Util", 14),
    Column("memory", "Memory GiB", 38, grow=20),
    Column("temp", "Temp", 5, right=True, rank=3),
    Column("power", "Power", 6, right=True, rank=4),
    Column("owner", "Owner", 18, grow=20),
    Column("other", "Other", 14, rank=2, grow=30),
)
GPU_NARROW: Sequence[Column] = (
    Column("index", "#", 2, right=True),
    Column("util", "Util", 5, right=True),
    Column("memory", "Memory GiB", 21),
    Column("temp", "T°C", 4, right=True, rank=3),
    Column("power", "W", 4, right=True, rank=4),
    Column("owner", "Owner", 14, grow=8),
    Column("other", "Other", 12, rank=2, grow=8),
)
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


def gpu_rows(
    gpus: Sequence[GpuView], replicas: Sequence[ReplicaView], glyphs: Glyphs, *, wide: bool
) -> list[Row]:
    """One row per GPU; one that is lost keeps its row."""
    states = {replica.id: replica for replica in replicas}
    columns = GPU_WIDE if wide else GPU_NARROW
    width = next(column.width for column in columns if column.key == "memory")
    return [_gpu_row(gpu, states, glyphs, width, wide=wide) for gpu in gpus]


def _gpu_row(gpu: GpuView, states: dict[str, ReplicaView], glyphs: Glyphs, width: int, *, wide: bool) -> Row:
    index = (Cell(str(gpu.index)),)
    if gpu.state == "LOST":
        tail = Cell("ERR: GPU is lost; the driver no longer reaches it", "err")
        return Row(gpu.uuid, {"index": index, "util": (Cell(c.UNKNOWN, "dim"),)}, tail, "memory")
    hot = (gpu.temperature_c or 0.0) >= HOT_C
    temperature = c.count(gpu.temperature_c) + ("°C" if wide and gpu.temperature_c is not None else "")
    power = c.count(gpu.power_w) + ("W" if wide and gpu.power_w is not None else "")
    percent = f"{c.count(gpu.utilization_pct)}%" if gpu.utilization_pct is not None else c.UNKNOWN
    util = percent
    if wide:
        filled = c.bar(None if gpu.utilization_pct is None else gpu.utilization_pct / 100, 9, glyphs)
        util = f"{filled}{percent:>5}"
    return Row(
        gpu.uuid,
        {
            "index": index,
            "util": (Cell(util),),
            "memory": memory(gpu, width, glyphs),
            "temp": (Cell(temperature + ("!" if hot else ""), "err" if hot else ""),),
            "power": (Cell(power),),
            "owner": _owner(gpu, states),
            "other": (Cell(other(gpu), "err" if foreign_bytes(gpu) else "dim"),),
        },
    )


def memory(gpu: GpuView, width: int, glyphs: Glyphs) -> tuple[Cell, ...]:
    """A bar of ours, what is not ours, and what is free; then used/total."""
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    if used is None or not total:
        return (Cell(c.UNKNOWN, "dim"),)
    figures = f" {c.gib(used):>5}/{total / 1024**3:.0f}"
    room = max(4, width - len(figures))
    ours = sum(owner.memory_bytes or 0 for owner in gpu.owners if owner.replica is not None)
    filled = min(room, round(room * used / total))
    mine = min(filled, round(room * ours / total)) if ours else 0
    if any(o.memory_bytes is None for o in gpu.owners if o.replica is not None):
        mine = filled  # the driver does not say how much; the replica is there, so it is most likely its
    alien = filled - mine
    role = "err" if used / total > 0.985 else "bar"
    return (
        Cell(glyphs.full * mine, role),
        Cell(glyphs.other * alien, "other"),
        Cell(glyphs.free * (room - filled), "dim"),
        Cell(figures),
    )


def _owner(gpu: GpuView, states: dict[str, ReplicaView]) -> tuple[Cell, ...]:
    names = list(dict.fromkeys(owner.replica for owner in gpu.owners if owner.replica is not None))
    names += [
        r.id for r in states.values() if gpu.index in r.gpus and r.id not in names and r.state != "STOPPED"
    ]
    if not names:
        text = gpu.state if gpu.state != "OK" else "free"
        return (Cell(text, "warn" if gpu.state != "OK" else "dim"),)
    replica = states.get(names[0])
    place, role = "", ""
    if replica is not None and len(replica.gpus) > 1 and gpu.index in replica.gpus:
        place = f" {replica.gpus.index(gpu.index)}/{len(replica.gpus)}"
    if replica is not None and replica.state != "READY":
        place, role = f"{place} {replica.state.lower()}", STATE_ROLES.get(replica.state, "")
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    if gpu.state != "OK":
        return (Cell(f"{gpu.state} {c.plain(names[0])}{place}{more}", "warn"),)
    return (Cell(c.plain(names[0]) + place + more, role),)


def other(gpu: GpuView) -> str:
    """Memory that is not ours: `9.8 alice`; `0.6 ?` where no process accounts for more than the driver's own share."""
    held = foreign_bytes(gpu)
    if held or foreign(gpu):
        first = max(foreign(gpu), key=lambda owner: owner.memory_bytes or 0)
        return f"{c.gib(held or None)} {c.plain(first.user or f'pid {first.pid}')}"
    if (gpu.unattributed_bytes or 0) >= 1024**3:
        return f"{c.gib(gpu.unattributed_bytes)} nobody's"
    return c.UNKNOWN


def replica_rows(
    replicas: Sequence[ReplicaView], glyphs: Glyphs, *, wide: bool, marked: frozenset[str], uneven: frozenset[str],
    busy: dict[str, str], now: float | None = None,
) -> list[Row]:  # fmt: skip
    """One row per replica.

    :param busy: what an action of ours is doing to a replica, by its id.
    """
    now = time.time() if now is None else now
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
