"""Whether the kernel has killed processes for memory: counters, not the kernel's log, which needs rights to read."""

from __future__ import annotations

from pathlib import Path

VMSTAT = Path("/proc/vmstat")
"""`oom_kill` counts every such kill on the host, those within a cgroup's limit included (Linux 4.13)."""
CGROUPS = Path("/sys/fs/cgroup")


def kills(vmstat: Path = VMSTAT) -> int | None:
    """OOM kills on this host so far; None: the kernel does not say."""
    return _counter(vmstat, "oom_kill")


def cgroup_of(pid: int, root: Path = CGROUPS, proc: Path = Path("/proc")) -> Path | None:
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
    return first if cgroup_kills(first) is not None else None


def cgroup_kills(cgroup: Path) -> int | None:
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
