"""The tables and lines of the screen. Data goes in by `show()`; nothing here talks to a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.text import Text
from textual.widgets import DataTable

from gpuserve_tui import format as fmt
from gpuserved.api.types import GpuOwner, GpuView, ReplicaView, Status


class Column(NamedTuple):
    """One column of a table."""

    key: str
    label: str
    width: int | None = None
    """In cells; None: as wide as its widest cell."""
    right: bool = False


# The first ones fit 80 columns; the rest needs a wider terminal, or the arrow keys.
GPU_COLUMNS: Sequence[Column] = (
    Column("index", "#", 2, right=True),
    Column("utilization", "Util", 4, right=True),
    Column("memory", "Memory GiB", 23),
    Column("temperature", "°C", 3, right=True),
    Column("power", "W", 4, right=True),
    Column("state", "State", 11),
    Column("owners", "Owners"),
    Column("name", "Name"),
)
REPLICA_COLUMNS: Sequence[Column] = (
    Column("id", "Replica"),
    Column("state", "State", 9),
    Column("rotation", "Rotation", 9),
    Column("gpus", "GPUs", 5),
    Column("in_flight", "In-fl", 5, right=True),
    Column("running", "Run", 3, right=True),
    Column("waiting", "Wait", 4, right=True),
    Column("kv", "KV%", 3, right=True),
    Column("restarts", "Rst", 3, right=True),
    Column("reason", "Reason"),
)
Row = Mapping[str, Text]
GAP = " "


class FleetTable(DataTable[Text]):
    """A table whose rows are updated in place by key, so that cursor and scroll stay where the operator left them."""

    def __init__(self, columns: Sequence[Column], *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(cursor_type="row", cell_padding=0, id=id)
        self._spec = columns
        self._shown: dict[str, Row] = {}

    def on_mount(self) -> None:
        """Make the columns."""
        for column in self._spec:
            width = None if column.width is None else column.width + len(GAP)
            self.add_column(_filled(Text(column.label), column), key=column.key, width=width)

    def show_rows(self, rows: Mapping[str, Row]) -> None:
        """Make the table hold exactly `rows`, touching only what differs."""
        for gone in self._shown.keys() - rows.keys():
            self.remove_row(gone)
        for key, row in rows.items():
            before = self._shown.get(key)
            if before is None:
                self.add_row(*(_filled(row[column.key], column) for column in self._spec), key=key)
                continue
            for column in self._spec:
                text = row[column.key]
                if text != before[column.key]:
                    self.update_cell(
                        key, column.key, _filled(text, column), update_width=column.width is None
                    )
        self._shown = dict(rows)


def _filled(text: Text, column: Column) -> Text:
    """A cell with the gap to the next. Spaces and no `justify`: that would strip the gap."""
    filled = text.copy()
    if column.right and column.width is not None:
        filled.pad_left(max(0, column.width - filled.cell_len))
    filled.append(GAP)
    return filled


class GpuTable(FleetTable):
    """One row per GPU."""

    def __init__(self) -> None:
        super().__init__(GPU_COLUMNS, id="gpus")

    def show(self, gpus: Sequence[GpuView]) -> None:
        """Show `gpus`, and nothing else."""
        self.show_rows({gpu.uuid: gpu_row(gpu) for gpu in gpus})


class ReplicaTable(FleetTable):
    """One row per replica."""

    def __init__(self) -> None:
        super().__init__(REPLICA_COLUMNS, id="replicas")

    def show(self, replicas: Sequence[ReplicaView]) -> None:
        """Show `replicas`, and nothing else."""
        self.show_rows({replica.id: replica_row(replica) for replica in replicas})


def gpu_row(gpu: GpuView) -> Row:
    """The cells of one GPU."""
    return {
        "index": fmt.number(gpu.index),
        "utilization": fmt.number(gpu.utilization_pct, "%"),
        "memory": fmt.memory(gpu.memory_used_bytes, gpu.memory_total_bytes),
        "temperature": fmt.number(gpu.temperature_c),
        "power": fmt.number(gpu.power_w),
        "state": fmt.cell(gpu.state, fmt.GPU_STATE_STYLES.get(gpu.state, "")),
        "owners": fmt.cell(", ".join(owner_name(o) for o in gpu.owners) or "free"),
        "name": fmt.cell(gpu.name),
    }


def owner_name(owner: GpuOwner) -> str:
    """A replica's id, or the PID of what is not ours."""
    return owner.replica or f"pid {owner.pid} (not ours)"


def replica_row(replica: ReplicaView) -> Row:
    """The cells of one replica."""
    gpus = ",".join(str(index) for index in replica.gpus)
    return {
        "id": fmt.cell(replica.id),
        "state": fmt.state(replica.state),
        "rotation": fmt.cell(replica.rotation),
        "gpus": fmt.cell(gpus or None),
        "in_flight": fmt.number(replica.in_flight),
        "running": fmt.number(replica.running),
        "waiting": fmt.number(replica.waiting),
        "kv": fmt.number(replica.kv_cache_pct),
        "restarts": fmt.number(replica.restarts),
        "reason": fmt.cell(why(replica)),
    }


def why(replica: ReplicaView) -> str:
    """What an operator should know of this replica in one line."""
    parts = [part for part in (replica.phase, replica.reason) if part]
    return "; ".join(parts)


def headline(status: Status | None, *, read_only: bool) -> Text:
    """The first line: which daemon, where it serves, how busy it is."""
    line = Text("gpuserve", style="bold", no_wrap=True, overflow="ellipsis", end="")
    if status is None:
        return line.append("  waiting for the daemon", style="dim")
    ready = sum(replica.state == "READY" for replica in status.replicas)
    router = status.router
    known = fmt.UNKNOWN if router.in_flight is None else str(router.in_flight)
    queued = fmt.UNKNOWN if router.queued is None else str(router.queued)
    line.append(f" {fmt.plain(status.version)}  ", style="dim")
    line.append(fmt.plain(status.endpoint or "no endpoint"), style="")
    line.append(f"  {ready}/{len(status.replicas)} ready  ", style="")
    line.append(f"{known} in flight, {queued} queued", style="")
    if read_only:
        line.append("  read-only", style="bold yellow")
    return line
