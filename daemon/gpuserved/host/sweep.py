"""The end of a start that has no shim, or whose shim nobody wants: its processes by their mark, what they left in /dev/shm, and
its folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path

from gpuserved.host import procfs
from gpuserved.host.deadline import within
from gpuserved.host.lock import settle
from gpuserved.host.shimclient import ShimConnection, ShimError
from gpuserved.shim.shm import Leftovers

log = logging.getLogger(__name__)

SWEEP_TRIES = 50
SWEEP_EVERY_S = 0.1
_ROUNDS = 16
"""A tree that forks while it is killed is looked at again."""


def marked_by(nonce: str) -> dict[int, int]:
    """Pid and start ticks of every living process of this user with GPUSERVE_NONCE=`nonce`, and of all below them."""
    mark = b"GPUSERVE_NONCE=" + nonce.encode()
    table = {
        pid: found
        for pid, found in procfs.processes().items()
        if found.state not in {"Z", "X"} and pid != os.getpid()
    }
    marked: set[int] = set()
    for pid in table:
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if mark in environ.split(b"\0"):
                    marked.add(pid)
        except OSError:
            continue
    grown = True
    while grown:
        below = {pid for pid, found in table.items() if found.ppid in marked and pid not in marked}
        marked |= below
        grown = bool(below)
    return {pid: table[pid].start_ticks for pid in marked}


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
        if procfs.is_same(pid, ticks):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)


async def end_start(folder: Path, nonce: str) -> None:
    """Kill one start, wait until its tree is gone, remove its folder.

    :raises FileNotFoundError: the folder is not there.
    """
    barred = await settle(folder)
    if barred is None:
        await _kill(folder)
    await sweep_start(folder, nonce)
    if barred is not None:
        barred.release()


async def sweep_start(folder: Path, nonce: str) -> None:
    """The end of a start that no shim keeps (any more); what cannot be killed is logged, and keeps its folder."""
    marked = Sweep(nonce)
    for _ in range(SWEEP_TRIES):
        if not marked.strike() and not marked.alive():
            break
        await asyncio.sleep(SWEEP_EVERY_S)
    else:
        log.error("processes of %s cannot be killed: %s", folder, sorted(marked_by(nonce)))
        return
    marked.finish()
    shutil.rmtree(folder, ignore_errors=True)


async def _kill(folder: Path) -> None:
    try:
        shim = await ShimConnection.connect(folder / "shim.sock")
        await shim.kill()
        await within(asyncio.shield(shim.closed), SWEEP_TRIES * SWEEP_EVERY_S)
        shim.close()
    except (ShimError, asyncio.TimeoutError):
        log.info("no shim answers in %s; sweeping by its mark", folder)
