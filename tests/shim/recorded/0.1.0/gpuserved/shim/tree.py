"""The process tree under a shim: who is in it, and how to end it.

The shim is the subreaper, so whatever escapes by setsid or a double fork becomes its child in the end: the tree is gone exactly
when the kernel says that the shim has no children left.
"""

from __future__ import annotations

import os
import signal

from gpuserved.shim.proc import Stat, pids, read_small, stat_of

_ROUNDS = 8  # rescans in one pass; processes that fork faster than that meet the next pass


def descendants(root: int) -> list[Stat]:
    """Every process below `root`, zombies included."""
    below: dict[int, list[Stat]] = {}
    for pid in pids():
        found = stat_of(pid)
        if found is not None:
            below.setdefault(found.parent, []).append(found)
    tree: list[Stat] = []
    queue = [root]
    while queue:
        for found in below.pop(queue.pop(), ()):
            tree.append(found)
            queue.append(found.pid)
    return tree


def kill_exactly(target: Stat) -> bool:
    """SIGKILL to this very process: the pidfd pins it before its start time is compared, so a reused pid is never hit."""
    try:
        pidfd = os.pidfd_open(target.pid)
    except OSError:
        return False
    try:
        now = stat_of(target.pid)
        if now is None or now.start_ticks != target.start_ticks:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def kill_descendants(root: int) -> int:
    """SIGKILL to all below `root`, and to what they forked meanwhile. Returns how many were hit."""
    hit: set[tuple[int, int]] = set()
    for _ in range(_ROUNDS):
        fresh = [
            found
            for found in descendants(root)
            if found.state != b"Z" and (found.pid, found.start_ticks) not in hit
        ]
        if not fresh:
            break
        for found in fresh:
            kill_exactly(found)
            hit.add((found.pid, found.start_ticks))
    return len(hit)


class Cgroup:
    """A delegated cgroup (version 2) of this replica's own; the shim itself is not in it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def make(self) -> None:
        """Create it.

        :raises OSError: not possible.
        """
        os.makedirs(self.path, mode=0o755, exist_ok=True)

    def kill(self) -> None:
        """SIGKILL to every member, at once where the kernel can (5.14)."""
        try:
            fd = os.open(f"{self.path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            for pid in self._members():
                found = stat_of(pid)
                if found is not None:
                    kill_exactly(found)
            return
        try:
            os.write(fd, b"1")
        except OSError:
            pass
        finally:
            os.close(fd)

    def populated(self) -> bool:
        """True while a process is in it or below."""
        try:
            return b"populated 1" in read_small(f"{self.path}/cgroup.events")
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the empty cgroup."""
        try:
            os.rmdir(self.path)
        except OSError:
            pass

    def _members(self) -> list[int]:
        try:
            return [int(pid) for pid in read_small(f"{self.path}/cgroup.procs", 1 << 20).split()]
        except OSError:
            return []
