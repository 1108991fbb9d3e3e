"""A run folder belongs to a shim that lives, or is barred for good."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

from gpuserved.host.lock import settle

HOLDS = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A shim that has its folder, and no socket yet."""
    made = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


async def test_a_folder_without_a_shim_is_barred_to_one_that_comes_late(tmp_path: Path) -> None:
    barred = await settle(tmp_path)
    assert barred is not None
    late = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with_lock = False
        try:
            fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with_lock = True
        except BlockingIOError:
            pass
        assert not with_lock
        barred.release()
        fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(late)


async def test_a_shim_on_its_way_is_waited_for(tmp_path: Path) -> None:
    shim = holder(tmp_path)
    try:
        waiting = asyncio.ensure_future(settle(tmp_path))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "shim.sock"))
            listener.listen()
            assert await asyncio.wait_for(waiting, 30) is None
    finally:
        shim.kill()
        shim.wait()
        assert shim.stdout is not None
        shim.stdout.close()


async def test_a_shim_that_dies_on_its_way_leaves_the_folder_to_us(tmp_path: Path) -> None:
    shim = holder(tmp_path)
    waiting = asyncio.ensure_future(settle(tmp_path))
    await asyncio.sleep(0.1)
    shim.kill()
    shim.wait()
    assert shim.stdout is not None
    shim.stdout.close()
    barred = await asyncio.wait_for(waiting, 30)
    assert barred is not None
    barred.release()
