"""GPUs as rows of tables: one row each, and the tree of whose memory it is."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell, Glyphs
from gpuserve_tui.view.layout import Column, Row
from gpuserve_tui.view.replicas import STATE_ROLES
from gpuserved.api.types import GpuOwner, GpuView, ReplicaView

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
TREE_COLUMNS: Sequence[Column] = (
    Column("what", "GPU / replica / process", 34, grow=30),
    Column("memory", "GiB", 12, right=True),
    Column("util", "Util", 5, right=True, rank=3),
    Column("temp", "T°C", 4, right=True, rank=4),
    Column("power", "W", 4, right=True, rank=5),
    Column("about", "", 12, grow=80),
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


def foreign(gpu: GpuView) -> list[GpuOwner]:
    """Processes on a GPU that are not ours."""
    return [owner for owner in gpu.owners if owner.replica is None]


def foreign_bytes(gpu: GpuView) -> int:
    """What they hold, as far as it is known."""
    return sum(owner.memory_bytes or 0 for owner in foreign(gpu))


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
