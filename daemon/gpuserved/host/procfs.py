"""What the kernel says about processes: trees, start times, CPU time, and whether it has killed some for memory.

Times are clock ticks unless a name ends in _s. Kills are read from counters: the kernel's log needs rights to read.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
VMSTAT = Path("/proc/vmstat")
"""`oom_kill` counts every such kill on the host, those within a cgroup's limit included (Linux 4.13)."""
CGROUPS = Path("/sys/fs/cgroup")


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


def oom_kills(vmstat: Path = VMSTAT) -> int | None:
    """OOM kills on this host so far; None: the kernel does not say."""
    return _counter(vmstat, "oom_kill")


def memory_cgroup_of(pid: int, root: Path = CGROUPS, proc: Path = Path("/proc")) -> Path | None:
    """The cgroup whose memory controller has `pid`; None: none has, or its files are not mounted here.

    The kernel counts a kill in the cgroup of its victim, whether the cgroup's own limit or the host had run out.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    places = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        places.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    # With version 1 the controller has a tree of its own; with version 2 there is one tree, named by nothing.
    first = root / "memory" / places["memory"] if "memory" in places else root / places.get("", "")
    return first if oom_kills_in(first) is not None else None


def oom_kills_in(cgroup: Path) -> int | None:
    """OOM kills in one cgroup so far; None: it has no memory controller, or is gone."""
    found = _counter(cgroup / "memory.events", "oom_kill")
    return found if found is not None else _counter(cgroup / "memory.oom_control", "oom_kill")


def _counter(path: Path, name: str) -> int | None:
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
