"""The screen that `bench` measures: the real one, with a clock that notes how late its loop runs. Imports nothing else."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from gpuserve_tui.app import FleetApp
from gpuserved.api.client import ControlClient

LAG_EVERY_S = 0.05
WARM_UP_S = 3.0


class Timed(FleetApp):
    """Samples the lag of its own loop."""

    lags: list[float]

    def on_mount(self) -> None:  # Textual calls that of FleetApp too
        self.lags = []
        self.run_worker(self.clockwork())

    async def clockwork(self) -> None:
        await asyncio.sleep(WARM_UP_S)
        while True:
            before = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_S)
            self.lags.append(time.perf_counter() - before - LAG_EVERY_S)


if __name__ == "__main__":
    app = Timed(ControlClient(Path(sys.argv[1])))
    app.run()
    Path(sys.argv[2]).write_text(json.dumps(app.lags))
