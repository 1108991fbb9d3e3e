"""Events, profiles and the owners of GPU memory as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserve_tui.view import cells as c
from gpuserve_tui.view.cells import Cell, Glyphs
from gpuserve_tui.view.columns import Column, Row
from gpuserve_tui.view.rows import STATE_ROLES
from gpuserved.api.inspect import ProfileView
from gpuserved.api.types import FleetEvent, GpuOwner, GpuView, ReplicaView

SEVERITY_ROLES = {"error": "err", "warning": "warn", "info": ""}
EVENT_COLUMNS: Sequence[Column] = (
    Column("time", "Time", 14, right=True),
    Column("severity", "Severity", 8, rank=1),
    Column("subject", "Subject", 14, grow=10),
    Column("text", "What happened", 30, grow=400),
)
PROFILE_COLUMNS: Sequence[Column] = (
    Column("name", "Profile", 16, grow=10),
    Column("state", "State", 14),
    Column("replicas", "Replicas", 12, rank=1),
    Column("model", "Model", 20, grow=40),
)

TREE_COLUMNS: Sequence[Column] = (
    Column("what", "GPU / replica / process", 34, grow=30),
    Column("memory", "GiB", 12, right=True),
    Column("util", "Util", 5, right=True, rank=3),
    Column("temp", "T°C", 4, right=True, rank=4),
    Column("power", "W", 4, right=True, rank=5),
    Column("about", "", 12, grow=80),
)


def event_row(event: FleetEvent, number: int, now: float) -> Row:
    """One event; `now`: Unix seconds. Its state words carry the meaning; the colour repeats it."""
    replica = event.replica
    subject = replica.id if replica else "daemon"
    text = event.message or ""
    if replica is not None:
        came = f"{event.previous_state} -> " if event.previous_state else ""
        text = f"{came}{replica.state}" + (f": {replica.reason}" if replica.reason else "")
    role = SEVERITY_ROLES.get(event.severity, "")
    return Row(
        f"{number}",
        {
            "time": (Cell(c.moment(event.at, now)),),
            "severity": (Cell(event.severity, role),),
            "subject": (Cell(c.plain(subject)),),
            "text": (Cell(c.plain(text), role),),
        },
    )


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


def tree_rows(gpus: Sequence[GpuView], replicas: Sequence[ReplicaView], glyphs: Glyphs) -> list[Row]:
    """GPU, then whose memory it is, then the processes; what belongs to no process last."""
    states = {replica.id: replica for replica in replicas}
    branch = "+-" if glyphs is c.ASCII else "├─"
    return [row for gpu in gpus for row in _branch(gpu, states, branch)]


def _branch(gpu: GpuView, states: dict[str, ReplicaView], branch: str) -> list[Row]:
    rows = [_gpu(gpu)]
    if gpu.reason:
        rows.append(Row(f"{gpu.uuid}//why", {"what": (Cell(f" {branch} {c.plain(gpu.reason)}", "err"),)}))
    names = dict.fromkeys(owner.replica for owner in gpu.owners if owner.replica is not None)
    idle = [r.id for r in states.values() if gpu.index in r.gpus and r.id not in names]
    for name in [*names, *idle]:
        mine = [owner for owner in gpu.owners if owner.replica == name]
        known = [owner.memory_bytes for owner in mine if owner.memory_bytes is not None]
        replica = states.get(name)
        state = replica.state if replica else "unknown"
        rows.append(
            _line(f"{gpu.uuid}/{name}", f" {branch} {c.plain(name)}", sum(known) if known else None,
                  Cell(state, STATE_ROLES.get(state, "")))
        )  # fmt: skip
        rows += [_process(gpu, owner, f"    {branch}") for owner in mine]
    for owner in (each for each in gpu.owners if each.replica is None):
        rows.append(_process(gpu, owner, f" {branch}"))
    if gpu.unattributed_bytes:
        about = Cell("of no process the driver names: its own share, or another container's", "dim")
        rows.append(_line(f"{gpu.uuid}/?", f" {branch} unattributed", gpu.unattributed_bytes, about))
    return rows


def _gpu(gpu: GpuView) -> Row:
    role = "" if gpu.state == "OK" else "err"
    links = f"  NVLink {','.join(map(str, gpu.nvlink))}" if gpu.nvlink else ""
    numa = f"  NUMA {gpu.numa_node}" if gpu.numa_node is not None else ""
    used = f"{c.gib(gpu.memory_used_bytes)}/{c.gib(gpu.memory_total_bytes)}"
    percent = f"{c.count(gpu.utilization_pct)}%" if gpu.utilization_pct is not None else c.UNKNOWN
    state = gpu.state if gpu.state == "OK" else gpu.state + ("" if gpu.reason else ": see its last events")
    return Row(
        gpu.uuid,
        {
            "what": (Cell(f"GPU {gpu.index}  {c.plain(gpu.name)}", "bold"),),
            "memory": (Cell(used, "bold"),),
            "util": (Cell(percent),),
            "temp": (Cell(c.count(gpu.temperature_c)),),
            "power": (Cell(c.count(gpu.power_w)),),
            "about": (Cell(f"{state}{links}{numa}", role or "dim"),),
        },
    )


def _process(gpu: GpuView, owner: GpuOwner, lead: str) -> Row:
    key = f"{gpu.uuid}/{owner.replica or ''}/{owner.pid}"
    what = f"{lead} {owner.pid} {c.plain(owner.command or '')}"
    ours = owner.replica is not None
    user = c.plain(owner.user or "")
    about = Cell(
        user if ours else f"not ours: {user or 'in another PID namespace'}", "dim" if ours else "err"
    )
    return _line(key, what, owner.memory_bytes, about)


def _line(key: str, what: str, memory: int | None, about: Cell) -> Row:
    return Row(key, {"what": (Cell(what),), "memory": (Cell(c.gib(memory)),), "about": (about,)})
