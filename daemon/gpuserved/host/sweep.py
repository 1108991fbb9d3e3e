"""The end of a start whose shim was killed: its processes by their mark, then what they left in /dev/shm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from gpuserved.host.shimfiles import process_stat, start_ticks
from gpuserved.shim.shm import Leftovers

_ROUNDS = 16
"""A tree that forks while it is killed is looked at again."""


def marked_by(nonce: str) -> dict[int, int]:
    """Pid and start ticks of every living process of this user with GPUSERVE_NONCE=`nonce`, and of all below them."""
    mark = b"GPUSERVE_NONCE=" + nonce.encode()
    parents: dict[int, int] = {}
    starts: dict[int, int] = {}
    marked: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        found = process_stat(pid)
        if found is None or pid == os.getpid():
            continue
        parents[pid], starts[pid] = found
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if mark in environ.split(b"\0"):
                    marked.add(pid)
        except OSError:
            continue
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in marked and pid not in marked}
        marked |= below
        grown = bool(below)
    return {pid: starts[pid] for pid in marked}


class Sweep:
    """Of one start. `strike` until it answers False, then `finish`."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._leftovers = Leftovers()

    def strike(self) -> list[int]:
        """SIGKILL to every process of the start that lives, once its shared memory is known.

        :returns: the pids that were hit; empty means that nothing lives. They may take a moment to be gone.
        """
        hit: dict[tuple[int, int], None] = {}
        for _ in range(_ROUNDS):
            fresh = [pair for pair in marked_by(self._nonce).items() if pair not in hit]
            if not fresh:
                break
            self._leftovers.learn([pid for pid, _ in fresh])
            for pid, ticks in fresh:
                hit[pid, ticks] = None
                _kill_exactly(pid, ticks)
        return [pid for pid, _ in hit]

    def alive(self) -> bool:
        """Does any process of the start live?"""
        return bool(marked_by(self._nonce))

    def finish(self) -> int:
        """Once nothing lives: remove the shared memory that was left. Returns how many files."""
        return self._leftovers.remove()


def _kill_exactly(pid: int, ticks: int) -> None:
    """The pidfd pins the process before its start is compared: a reused pid is never hit."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_ticks(pid) == ticks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)
