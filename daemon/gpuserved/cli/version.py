"""version, and which process runs which release: upgrade and status show it too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.api.types import Status
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.session import client_of, print_json
from gpuserved.cli.text import UNKNOWN, table
from gpuserved.host.logtail import clean

OLDER = "older"
"""Shown for a process from before it said so."""


def add_arguments(parser: VerbParser) -> None:
    """None of its own."""
    parser.examples("version")


def run(options: argparse.Namespace) -> int:
    """`gpuserve version`: works without a daemon."""
    client, daemon, parts, mixed = client_of(options), None, [], None
    try:
        daemon = client.version().version
        status = client.status()
        parts, mixed = parts_of(status, gpuserved.__version__), differing(status)
    except GpuserveError:
        pass  # no daemon, or one that answers the first question alone
    if options.json:
        print_json({"version": gpuserved.__version__, "daemon": daemon, "processes": parts})
        return 0
    print(f"gpuserve {gpuserved.__version__}, daemon {daemon or 'not running'}")
    if mixed is not None or daemon not in {None, gpuserved.__version__}:
        print("\n".join(part_lines(parts)))
    return 0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process, the release it runs, and what an upgrade does with it."""

    process: str
    pid: int | None
    running: str | None
    """None: a release from before this was noted."""
    installed: str
    replaced: bool
    """An upgrade to `installed` replaces it now; a replica's shim goes with its replica's next start instead."""
    draining: bool = False


def parts_of(status: Status, installed: str) -> list[Part]:
    """The daemon, the routers with their shims, and the replicas' shims."""
    daemon = status.supervisor
    parts = [
        Part(
            process="daemon",
            pid=daemon.pid,
            running=daemon.version,
            installed=installed,
            replaced=daemon.version != installed,
        )
    ]
    for each in status.router.processes:
        name = f"router {each.router}"
        for process, pid, running in (
            (name, each.pid, each.version),
            (f"{name}, shim", each.shim_pid, each.shim_version),
        ):
            replaced = not each.draining and each.version != installed
            parts.append(
                Part(
                    process=process,
                    pid=pid,
                    running=running,
                    installed=installed,
                    replaced=replaced,
                    draining=each.draining,
                )
            )
    parts += [
        Part(
            process=f"{row.id}, shim",
            pid=row.shim_pid,
            running=row.shim_version,
            installed=installed,
            replaced=False,
        )
        for row in status.replicas
        if row.shim_pid is not None
    ]
    return parts


def part_lines(parts: Sequence[Part], *, forced: bool = False) -> list[str]:
    """A table for people."""
    rows = [
        [
            clean(part.process),
            UNKNOWN if part.pid is None else str(part.pid),
            part.running or OLDER,
            part.installed,
            _fate(part, forced=forced),
        ]
        for part in parts
    ]
    return table(["PROCESS", "PID", "RUNNING", "INSTALLED", "UPGRADE"], rows, frozenset({1}))


def _fate(part: Part, *, forced: bool) -> str:
    if part.draining:
        return "ends after its last request"
    if part.replaced or (forced and (part.process == "daemon" or part.process.startswith("router "))):
        return "replaced"
    if part.running == part.installed:
        return "up to date"
    return "stays until its replica's next start"


def differing(status: Status) -> str | None:
    """One line where the processes of a fleet are not of one release; None: they are."""
    counts: dict[str, dict[str, int]] = {"routers": {}, "shims": {}}
    for each in status.router.processes:
        if not each.draining and each.pid is not None:
            name = each.version or OLDER
            counts["routers"][name] = counts["routers"].get(name, 0) + 1
    for row in status.replicas:
        if row.shim_pid is not None:
            name = row.shim_version or OLDER
            counts["shims"][name] = counts["shims"].get(name, 0) + 1
    if not {name for each in counts.values() for name in each} - {status.version}:
        return None
    said = [
        f"{what} " + ", ".join(f"{name} ({count})" for name, count in sorted(found.items()))
        for what, found in counts.items()
        if found
    ]
    return "; ".join([f"daemon {status.version}", *said])
