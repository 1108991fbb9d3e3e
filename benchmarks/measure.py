"""What a process tree has used: CPU time and memory, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

_AUTOGROUP = Path("/proc/self/autogroup")


def cores() -> tuple[int, list[int]]:
    """(the proxy's core, the cores of backend and client), of those this process may use.

    One core for both where there is one: then every figure but CPU per unit of work is depressed.
    """
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[:-1] or usable


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


@dataclass(frozen=True)
class CpuTime:
    """Seconds of all threads of some processes."""

    used_s: float
    waited_s: float
    """Ready to run, while something else had the core."""

    def __sub__(self, before: CpuTime) -> CpuTime:
        return CpuTime(self.used_s - before.used_s, self.waited_s - before.waited_s)


def cpu_time(pids: list[int]) -> CpuTime:
    """The scheduler's own count, user and system, in nanoseconds (schedstat)."""
    used_ns = waited_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                used, waited, _ = task.read_text().split()
            except (OSError, ValueError):
                continue  # a thread that has just ended
            used_ns += int(used)
            waited_ns += int(waited)
    return CpuTime(used_ns / 1e9, waited_ns / 1e9)


def pss_bytes(pids: list[int]) -> int | None:
    """Proportional set size of all processes; None where this user may not read it."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return None
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    return total


def hurry(pids: list[int], nice: int) -> bool:
    """Set the priority of processes, their threads, and this session; False where this user may not."""
    try:
        if _AUTOGROUP.exists():
            # Where the kernel groups tasks by session, a nice value counts inside the session alone (sched(7)).
            _AUTOGROUP.write_text(str(nice))
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
    except OSError:
        return False
    return True
