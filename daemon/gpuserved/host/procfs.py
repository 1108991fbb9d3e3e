"""What /proc says about processes: trees, start times, CPU time. Times are clock ticks unless a name ends in _s."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessStat:
    """One process, from /proc/PID/stat."""

    pid: int
    ppid: int
    state: str
    """One letter: R, S, D, T, Z ... (proc(5))."""
    start_ticks: int
    """Since boot; with the pid it names a process for good."""
    cpu_ticks: int
    """User and system time, with that of children it has waited for."""


def boot_id() -> str:
    """Changes with every boot; start ticks of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process(pid: int) -> ProcessStat | None:
    """One process, or None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return _parse(pid, file.read())
    except (OSError, ValueError, IndexError):
        return None


def identity(pid: int) -> tuple[str | None, str | None]:
    """A process's name and its user; None where it is gone, or not of this PID namespace."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().rstrip("\n")
    except OSError:
        return None, None
    try:
        return name, pwd.getpwuid(uid).pw_name
    except KeyError:
        return name, str(uid)


def start_ticks(pid: int) -> int | None:
    """When `pid` started; None where it is gone. A zombie still has one."""
    found = process(pid)
    return found.start_ticks if found else None


def is_same(pid: int, ticks: int) -> bool:
    """True where the process that started at `ticks` under this pid still lives, and is no zombie."""
    found = process(pid)
    return found is not None and found.start_ticks == ticks and found.state not in {"Z", "X"}


def processes() -> dict[int, ProcessStat]:
    """Every process, in one pass. What ends meanwhile is left out."""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {each.pid: each for each in found if each is not None}


def tree(root: int, table: Mapping[int, ProcessStat]) -> set[int]:
    """`root` and its descendants among `table`; empty where root is gone."""
    return trees({"": root}, table)[""]


def trees(roots: Mapping[str, int], table: Mapping[int, ProcessStat]) -> dict[str, set[int]]:
    """For each name the pids of its root's tree, from one table."""
    children: dict[int, list[int]] = {}
    for each in table.values():
        children.setdefault(each.ppid, []).append(each.pid)
    found: dict[str, set[int]] = {}
    for name, root in roots.items():
        members: set[int] = set()
        waiting = [root] if root in table else []
        while waiting:
            pid = waiting.pop()
            if pid not in members:
                members.add(pid)
                waiting.extend(children.get(pid, ()))
        found[name] = members
    return found


def cpu_s(pids: Iterable[int], table: Mapping[int, ProcessStat]) -> float:
    """CPU seconds that these processes have used in all. Grows while a start makes progress."""
    return sum(table[pid].cpu_ticks for pid in pids if pid in table) / TICKS_PER_S


def _parse(pid: int, raw: bytes) -> ProcessStat:
    # The command's name stands in parentheses and may hold blanks and parentheses itself.
    rest = raw[raw.rindex(b")") + 2 :].split()
    return ProcessStat(
        pid=pid,
        ppid=int(rest[1]),
        state=rest[0].decode(),
        start_ticks=int(rest[19]),
        cpu_ticks=sum(int(figure) for figure in rest[11:15]),
    )
