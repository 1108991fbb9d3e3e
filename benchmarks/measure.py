"""What a process tree has used: CPU time and memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


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


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of all threads, user and system: the scheduler's own count, in nanoseconds (schedstat)."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total_ns += int(task.read_text().split()[0])
            except (OSError, IndexError):
                continue  # a thread that has just ended
    return total_ns / 1e9


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
    """Set the priority of processes and their threads; False where this user may not."""
    try:
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
    except OSError:
        return False
    return True
