"""A start that nobody wants, or that has failed half-way: end whatever of it runs, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from gpuserved.host.deadline import within
from gpuserved.host.folderlock import settle
from gpuserved.host.shimclient import ShimConnection, ShimError
from gpuserved.host.sweep import Sweep, marked_by

log = logging.getLogger(__name__)

SWEEP_TRIES = 50
SWEEP_EVERY_S = 0.1


async def end(folder: Path, nonce: str) -> None:
    """Kill one start, wait until its tree is gone, remove its folder.

    :raises FileNotFoundError: the folder is not there.
    """
    barred = await settle(folder)
    if barred is None:
        await _kill(folder)
    await sweep(folder, nonce)
    if barred is not None:
        barred.release()


async def sweep(folder: Path, nonce: str) -> None:
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
