"""An engine's environment that is replaced under running replicas: they go on with what they have loaded, and say so."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpuserved.engines.installed import Installed

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""A look lists the site folders of each interpreter that is in use: below a millisecond."""


class Environments:
    """Compares what replicas were started from with what is installed. Belongs to one fleet's loop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look from now on."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("environments could not be looked at")
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        for name, owner in list(self._fleet.owners.items()):
            before, profile, generation = owner.installed, owner.assignment.profile, owner.r.generation
            if before is None:
                continue
            now = await asyncio.to_thread(self._fleet.engine(profile).installed, profile)
            if owner.r.generation != generation or owner.installed is None:
                continue  # started anew meanwhile
            said = difference(before, now)
            if said is not None and owner.outdated is None:
                self._fleet.bus.publish("notice", message=f"{name} {said}", severity="warning")
                log.warning("%s %s", name, said)
            owner.environment_changed(said)


def difference(before: Installed, now: Installed | None) -> str | None:
    """What has become of the environment of a running replica; None: nothing, or it is being replaced this moment."""
    if now is None or now == before:
        return None
    if now.version != before.version:
        return (
            f"runs {before.name} {before.version}, and {now.version} is installed now: the next start uses it"
        )
    return f"runs {before.name} {before.version} as it was before it was installed again: the next start uses the new one"
