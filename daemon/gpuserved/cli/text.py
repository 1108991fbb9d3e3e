"""A status as text: aligned, within 80 columns, nothing that could drive a terminal, '-' for what nobody knows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gpuserved.api.types import GpuView, ReplicaView, RolloutView, Status
from gpuserved.host.logtail import clean

UNKNOWN = "-"
_GIB = 1024**3
_ID_MIN = 8


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()
) -> list[str]:
    """Aligned lines.

    :param right: columns aligned to the right.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(widths[n]) if n in right else cell.ljust(widths[n]) for n, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def status_lines(status: Status, columns: int, now: float | None = None) -> list[str]:
    """The whole of `gpuserve status`."""
    now = time.time() if now is None else now
    ready = sum(replica.state == "READY" for replica in status.replicas)
    router = status.router
    head = f"{status.endpoint or 'no URL yet'}  {ready}/{len(status.replicas)} ready"
    figures = (
        f"in flight {number(router.in_flight)}  queued {number(router.queued)}  "
        f"requests {number(router.requests_total)}  daemon {status.supervisor.version} up {age(status.supervisor.uptime_s)}"
    )
    lines = [f"{head}  {figures}"] if len(head) + len(figures) + 2 <= columns else [head, figures]
    if status.supervisor.degraded:
        lines += wrapped(f"! {status.supervisor.degraded}", columns, "  ")
    lines += _change_of_version(status, columns)
    for roll in status.rollouts:
        if roll.outcome != "done":
            lines += wrapped(f"! {clean(rollout_line(roll))}", columns, "  ")
    if status.gpus:
        lines += ["", *gpu_lines(status.gpus, columns)]
    lines.append("")
    if status.replicas:
        return lines + replica_lines(status.replicas, columns, now)
    return [*lines, "no replicas: gpuserve apply PROFILE adds some"]


def _change_of_version(status: Status, columns: int) -> list[str]:
    """Which releases run where they differ, routers that end, and what did not work."""
    from gpuserved.cli.versions import differing

    mixed = differing(status)
    lines = [] if mixed is None else wrapped(f"versions: {clean(mixed)}", columns, "  ")
    for each in status.router.processes:
        if each.draining:
            line = f"router {each.router} (PID {each.pid}) was replaced and ends after its last request: "
            flying = f"{number(each.in_flight)} in flight, {number(each.connections)} connections"
            lines += wrapped(f"! {line}{flying}", columns, "  ")
    if status.router.trouble:
        lines += wrapped(f"! {clean(status.router.trouble)}", columns, "  ")
    failed = status.supervisor.failed_upgrade
    if failed is not None:
        line = (
            f"! the upgrade to {clean(failed.version)} failed, this version goes on: {clean(failed.reason)}"
        )
        lines += wrapped(line, columns, "  ")
    return lines


_OUTCOMES = {
    "done": "rolling change done",
    "rolled_back": "rolled back to what ran before",
    "stopped": "rolling change stopped",
}


def rollout_line(roll: RolloutView) -> str:
    """How far a rolling change is, or how it ended."""
    if roll.outcome is not None:
        head = _OUTCOMES.get(roll.outcome, roll.outcome)
    else:
        what = "rolling back" if roll.direction == "back" else "rolling change"
        head = f"{what}, {roll.done} of {roll.total} replaced"
        head += f", now {roll.current}" if roll.current else ""
    return f"{roll.profile}: {head}" + (f": {roll.reason}" if roll.reason else "")


def gpu_lines(gpus: Sequence[GpuView], columns: int) -> list[str]:
    """One line per GPU."""
    rows = [
        [
            str(gpu.index),
            cut(clean(gpu.name), 24),
            f"{gib(gpu.memory_used_bytes)}/{gib(gpu.memory_total_bytes)}",
            unit(gpu.utilization_pct, "%"),
            unit(gpu.temperature_c, "C"),
            gpu.state,
            _owners(gpu),
        ]
        for gpu in gpus
    ]
    lines = table(
        ["GPU", "NAME", "MEM GiB", "UTIL", "TEMP", "STATE", "USED BY"], rows, frozenset({0, 2, 3, 4})
    )
    shown = [cut(lines[0], columns)]
    for gpu, line in zip(gpus, lines[1:], strict=True):
        shown.append(cut(line, columns))
        if gpu.reason:
            shown += wrapped(f"     {clean(gpu.reason)}", columns, "       ")
    return shown


def _owners(gpu: GpuView) -> str:
    names = [clean(owner.replica) if owner.replica else f"PID {owner.pid} (not ours)" for owner in gpu.owners]
    return ", ".join(dict.fromkeys(names)) or UNKNOWN


def replica_lines(replicas: Sequence[ReplicaView], columns: int, now: float) -> list[str]:
    """One line per replica, and below it why it is where it is."""
    header = ["REPLICA", "STATE", "ROT", "GPUS", "FLY", "RUN", "WAIT", "KV", "RST", "AGE"]
    rows = [
        [
            clean(replica.id),
            replica.state,
            replica.rotation or UNKNOWN,
            gpu_list(replica.gpus),
            number(replica.in_flight),
            number(replica.running),
            number(replica.waiting),
            unit(replica.kv_cache_pct, "%"),
            str(replica.restarts),
            UNKNOWN if replica.started_at is None else age(now - replica.started_at),
        ]
        for replica in replicas
    ]
    others = sum(max(len(row[n]) for row in (header, *rows)) + 2 for n in range(1, len(header)))
    room = max(_ID_MIN, columns - others)
    for row in rows:
        row[0] = cut_middle(row[0], room)
    lines = table(header, rows, frozenset(range(4, len(header))))
    out = [lines[0]]
    for replica, line in zip(replicas, lines[1:], strict=True):
        out.append(line)
        why = replica.phase if replica.state == "STARTING" and replica.phase else replica.reason
        if why:
            out += wrapped(f"  {clean(why)}", columns, "    ")
        if replica.outdated:
            out += wrapped(f"  {clean(replica.outdated)}", columns, "    ")
    return out


def gpu_list(gpus: Sequence[int]) -> str:
    """`0-3,6`; '-' on the CPU."""
    if not gpus:
        return UNKNOWN
    runs: list[list[int]] = []
    for index in sorted(gpus):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def number(value: float | None) -> str:
    """A count, or '-'."""
    return UNKNOWN if value is None else f"{value:.0f}"


def unit(value: float | None, suffix: str) -> str:
    """`12%`, or '-'."""
    return UNKNOWN if value is None else f"{value:.0f}{suffix}"


def gib(value: int | None) -> str:
    """Bytes as GiB."""
    return UNKNOWN if value is None else f"{value / _GIB:.1f}"


def age(seconds: float) -> str:
    """`12s`, `5m`, `3h10m`, `2d4h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole < 600 else f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def cut(text: str, room: int) -> str:
    """At most `room` characters."""
    return text if len(text) <= room else text[: max(0, room - 3)] + "..."


def cut_middle(text: str, room: int) -> str:
    """At most `room` characters, keeping both ends: a replica's number is at the end of its id."""
    if len(text) <= room:
        return text
    tail = (room - 2) // 2
    return f"{text[: room - 2 - tail]}..{text[len(text) - tail :]}"


def wrapped(text: str, columns: int, indent: str) -> list[str]:
    """Lines of at most `columns`."""
    if len(text) <= columns:
        return [text]
    import textwrap

    return textwrap.wrap(text, columns, subsequent_indent=indent)


def last_state(line: str) -> str:
    """A log line as a terminal would show it in the end: the last state of a progress bar, without control bytes."""
    return clean(line.rstrip("\r").rsplit("\r", 1)[-1])
