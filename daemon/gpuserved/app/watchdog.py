"""Pings for systemd's watchdog."""

from __future__ import annotations

import asyncio
import time

from gpuserved.host import systemd

LOOP_LAG_MAX_S = 1.0
"""The watchdog is fed only while the loop answers within this."""


async def feed_watchdog(notify: str | None, interval_s: float | None) -> None:
    """Ping systemd only while this loop is on time."""
    if interval_s is None:
        return
    while True:
        before = time.monotonic()
        await asyncio.sleep(interval_s)
        if time.monotonic() - before - interval_s < LOOP_LAG_MAX_S:
            systemd.notify(notify, "WATCHDOG=1")
