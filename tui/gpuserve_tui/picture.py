"""`--screenshot`: the screen as an SVG, without a terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from gpuserve_tui.app import FleetApp

WAIT_S = 15.0
"""For the first data."""
SETTLE_S = 2.5
"""Then for trends and log lines, so that the picture shows a screen at work."""


def take(app: FleetApp, path: Path, screen: str, size: tuple[int, int]) -> int:
    """Run the app headless, save one picture.

    :returns: the exit code; 3: no data came.
    """
    app.first_pane = screen
    return asyncio.run(_take(app, path, size))


async def _take(app: FleetApp, path: Path, size: tuple[int, int]) -> int:
    async with app.run_test(size=size) as pilot:
        deadline = time.monotonic() + WAIT_S
        while app.status is None:
            if time.monotonic() > deadline:
                print(
                    f"gpuserve-tui: no data from the daemon within {WAIT_S:.0f} s; is it running? gpuserve status",
                    file=sys.stderr,
                )
                return 3
            await pilot.pause(0.05)
        await pilot.pause(SETTLE_S)
        path.write_text(app.export_screenshot(title="gpuserve-tui"), encoding="utf-8")
    return 0
