# ruff: noqa: INP001 - a program of its own, not part of a package
"""Measure what gpuserve itself costs: start profiles/sim-8gpu.toml in a temporary root and print a table.

Usage: python scripts/measure_footprint.py [--seconds 30] [--runs 20] [--json]

Median time of `gpuserve status`, CPU share of the idle supervisor and router, and the proportional memory (PSS) of
supervisor, shims and router. Run it on an otherwise idle machine; needs gpuserve installed for this interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024
SETTLE_S = 5.0
"""After the last replica is ready: caches, slow start and first probes are over."""


class Daemon:
    """gpuserve in a root of its own."""

    def __init__(self, root: Path) -> None:
        parts = (REPOSITORY / "daemon", REPOSITORY / "tui")
        self.env = os.environ | {
            "GPUSERVE_ROOT": str(root),
            "PYTHONPATH": os.pathsep.join(str(part) for part in parts),
        }

    def run(self, *arguments: str) -> str:
        """`gpuserve ARGUMENTS`; raises where it fails."""
        command = [sys.executable, "-m", "gpuserved.cli.main", *arguments]
        done = subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=300)
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`gpuserve status --json`."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json"))
        return answer


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def median_status_ms(daemon: Daemon, runs: int) -> float:
    """Median wall time of `gpuserve status`, interpreter start included, in milliseconds."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        daemon.run("status")
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def cpu_pct(processes: dict[str, psutil.Process], seconds: float) -> dict[str, float]:
    """CPU time over wall time for each process while nobody asks anything, in percent of one core."""

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, begun = {name: used(process) for name, process in processes.items()}, time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - begun
    return {name: 100 * (used(process) - before[name]) / wall for name, process in processes.items()}


def pss_mib(process: psutil.Process) -> float:
    """Proportional set size in MiB."""
    return float(process.memory_full_info().pss) / MIB


def measure(daemon: Daemon, seconds: float, runs: int) -> dict[str, float]:
    """Every figure of the table."""
    status = daemon.status()
    supervisor = psutil.Process(status["supervisor"]["pid"])
    router = psutil.Process(status["router"]["pids"][0])
    shims = [psutil.Process(row["shim_pid"]) for row in status["replicas"]]
    router_shim = psutil.Process(router.ppid())
    idle = cpu_pct({"supervisor": supervisor, "router": router, "shim": shims[0]}, seconds)
    return {
        "gpuserve status, median ms": median_status_ms(daemon, runs),
        "supervisor idle, % of a core": idle["supervisor"],
        "router idle, % of a core": idle["router"],
        "shim idle, % of a core": idle["shim"],
        "supervisor PSS, MiB": pss_mib(supervisor),
        "router PSS, MiB": pss_mib(router),
        "router shim PSS, MiB": pss_mib(router_shim),
        "replica shim PSS, largest, MiB": max(pss_mib(shim) for shim in shims),
    }


def main() -> int:
    """Start, measure, stop."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=30.0, help="how long to watch the idle processes")
    made.add_argument("--runs", type=int, default=20, help="how often to run `gpuserve status`")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = made.parse_args()
    root = Path(tempfile.mkdtemp(prefix="gpuserve-footprint-"))
    daemon = Daemon(root)
    try:
        profile = str(REPOSITORY / "profiles" / "sim-8gpu.toml")
        daemon.run("up", profile, "--listen", f"127.0.0.1:{free_port()}", "--wait", "120")
        time.sleep(SETTLE_S)
        figures = measure(daemon, arguments.seconds, arguments.runs)
    finally:
        daemon.run("down", "--yes")
        shutil.rmtree(root, ignore_errors=True)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, 8 sim replicas")
        for name, value in figures.items():
            print(f"  {name:34} {value:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
