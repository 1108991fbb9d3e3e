"""status and gpus: what runs where, once or again every second."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from gpuserved.api.errors import TimedOut, Unavailable
from gpuserved.api.types import GpuView, ReplicaView, Status
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.session import client_of, notice, print_json, width
from gpuserved.cli.text import (
    UNKNOWN,
    age,
    cut,
    cut_middle,
    gib,
    gpu_list,
    number,
    rollout_line,
    table,
    unit,
    wrapped,
)
from gpuserved.cli.version import differing
from gpuserved.host.logtail import clean

_WATCH_S = 1.0
_CLEAR = "\x1b[H\x1b[J"
_ID_MIN = 8


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    if parser.verb == "gpus":
        parser.examples("gpus", "gpus --json")
        return
    parser.examples("status", "status --watch", "status --json")
    parser.add_argument("--watch", "-w", action="store_true", help="show it again every second")


def run(options: argparse.Namespace) -> int:
    """`gpuserve status`, `gpuserve gpus`."""
    if options.verb == "status":
        return show(options, status_lines, lambda found: found, again=options.watch)
    found = client_of(options).status().gpus
    if options.json:
        print_json({"gpus": found})
    elif found:
        print("\n".join(_gpu_lines(found, width())))
    else:
        print("no GPUs on this host, or none that the daemon may see")
    return 0


def show(
    options: argparse.Namespace,
    as_lines: Callable[[Status, int], list[str]],
    as_json: Callable[[Status], object],
    *,
    again: bool,
) -> int:
    """Show the status once, or again and again."""
    client = client_of(options)
    found = client.status()  # a daemon that never was is an error, one that goes away later is news
    if again:
        return _watch(options, as_lines, as_json)
    if options.json:
        print_json(as_json(found))
    else:
        print("\n".join(as_lines(found, width())))
    notice(client)
    return 0


def _watch(
    options: argparse.Namespace,
    as_lines: Callable[[Status, int], list[str]],
    as_json: Callable[[Status], object],
) -> int:
    """Show it every second; a daemon that restarts is waited for."""
    terminal = sys.stdout.isatty()
    try:
        while True:
            try:
                found = client_of(options).status()
            except (Unavailable, TimedOut) as error:
                body = msgspec.json.encode(error.body()).decode()
                lines = [body if options.json else f"{error.message}; waiting for it"]
            else:
                as_one = msgspec.json.encode(as_json(found)).decode() if options.json else ""
                lines = [as_one] if options.json else as_lines(found, width())
            clear = _CLEAR if terminal and not options.json else ""
            print(clear + "\n".join(lines), flush=True)
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return 0


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
        lines += ["", *_gpu_lines(status.gpus, columns)]
    lines.append("")
    if status.replicas:
        return lines + _replica_lines(status.replicas, columns, now)
    return [*lines, "no replicas: gpuserve apply PROFILE adds some"]


def _change_of_version(status: Status, columns: int) -> list[str]:
    """Which releases run where they differ, routers that end, and what did not work."""
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


def _gpu_lines(gpus: Sequence[GpuView], columns: int) -> list[str]:
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


def _replica_lines(replicas: Sequence[ReplicaView], columns: int, now: float) -> list[str]:
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
