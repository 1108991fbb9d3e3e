"""Whether the kernel has killed processes for memory: counters, not the kernel's log, which needs rights to read."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")
"""`oom_kill` counts every such kill on the host, those within a cgroup's limit included (Linux 4.13)."""


def kills(vmstat: Path = VMSTAT) -> int | None:
    """OOM kills on this host so far; None: the kernel does not say."""
    return _counter(vmstat, "oom_kill")


def cgroup_kills(cgroup: Path) -> int | None:
    """OOM kills in one cgroup (version 2) so far; None: it has no memory controller."""
    return _counter(cgroup / "memory.events", "oom_kill")


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
