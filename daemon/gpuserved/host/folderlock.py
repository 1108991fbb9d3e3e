"""Who has a run folder: a shim that lives, or nobody ever again.

A shim locks its folder before it does anything else and holds the lock for its life, so that whoever gets the lock knows that no
shim is there, and that one which is still on its way (its starter was killed) will find the folder locked, or gone, and end.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from gpuserved.host.shimclient import ShimConnection, ShimError

SETTLE_S = 10.0
"""A shim that holds its folder and takes no connection for so long is stopped or stuck: dealt with as one that answers."""
_POLL_S = 0.02


class FolderLock:
    """The lock of one run folder."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Let go, once the folder is gone or a shim of ours may have it."""
        os.close(self._fd)


async def settle(folder: Path) -> FolderLock | None:
    """Wait until a shim answers in `folder` (None), or make sure that none will.

    :raises FileNotFoundError: the folder is not there.
    """
    deadline = time.monotonic() + SETTLE_S
    while not await _answers(folder / "shim.sock"):
        locked = _lock(folder)
        if locked is not None:
            return FolderLock(locked)
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_POLL_S)
    return None


async def _answers(path: Path) -> bool:
    try:
        (await ShimConnection.connect(path, timeout_s=_POLL_S)).close()
    except ShimError:
        return False
    return True


def _lock(folder: Path) -> int | None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
