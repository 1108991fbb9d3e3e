"""An engine's environment that is replaced under running replicas: they go on with what they have loaded, and say so."""

from __future__ import annotations

import asyncio
import logging

from gpuserved.engines.installed import Installed
from gpuserved.engines.registry import Engines
from gpuserved.fleet.events import Bus
from gpuserved.fleet.state import FleetState
from gpuserved.host.tasks import Tasks

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""A look lists the site folders of each interpreter that is in use: below a millisecond."""


class Environments:
    """Compares what replicas were started from with what is installed. Belongs to one fleet's loop."""

    def __init__(self, state: FleetState, engines: Engines, bus: Bus) -> None:
        self._state = state
        self._engines = engines
        self._bus = bus
        self._tasks = Tasks(log)

    def begin(self) -> None:
        """Look from now on."""
        self._tasks.start(self._run(), "the look at environments")

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("environments could not be looked at")
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        for name, controller in list(self._state.replicas.items()):
            before, profile, generation = (
                controller.installed,
                controller.assignment.profile,
                controller.r.generation,
            )
            if before is None:
                continue
            now = await asyncio.to_thread(self._engines.get(profile).installed, profile)
            if controller.r.generation != generation or controller.installed is None:
                continue  # started anew meanwhile
            said = difference(before, now)
            if said is not None and controller.outdated is None:
                self._bus.publish("notice", message=f"{name} {said}", severity="warning")
                log.warning("%s %s", name, said)
            controller.environment_changed(said)


def difference(before: Installed, now: Installed | None) -> str | None:
    """What has become of the environment of a running replica; None: nothing, or it is being replaced this moment."""
    if now is None or now == before:
        return None
    if now.version != before.version:
        return (
            f"runs {before.name} {before.version}, and {now.version} is installed now: the next start uses it"
        )
    return f"runs {before.name} {before.version} as it was before it was installed again: the next start uses the new one"
