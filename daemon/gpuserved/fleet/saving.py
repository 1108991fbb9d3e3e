"""When the desired state goes to disk: at once before a start, soon after everything else."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpuserved.fleet import store

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)

DELAY_S = 0.05
"""Changes within this time are saved together; a start is saved before it happens whatever the delay."""


class Saving:
    """Writes one fleet's state file. Belongs to the fleet's loop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """With what else changes in the next moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self.quietly)

    def now(self) -> None:
        """Before this returns.

        :raises OSError: the file before it is untouched.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        store.save(self._fleet.roots.state / "fleet.json", self._record())
        self._fleet.degraded = None

    def quietly(self) -> None:
        """Now; where the disk refuses, say so in `status` and go on."""
        self._timer = None
        try:
            self.now()
        except OSError as error:
            self._fleet.degraded = f"state not saved: {error.strerror}"
            log.error("the state could not be saved: %s", error)  # noqa: TRY400 - the reason is in the error

    def _record(self) -> store.FleetRecord:
        """The fleet as the next daemon is to find it. While everything is being stopped that is not how it stands: what is
        wanted then is what was, and that its replicas stop is nothing to remember.
        """
        fleet = self._fleet
        wanted, owners = (fleet.leaving, ()) if fleet.leaving else (fleet.wanted, fleet.owners.values())
        return store.FleetRecord(
            generation=fleet.generation,
            wanted=[store.wanted_record(name, each) for name, each in wanted.items()],
            rolls=fleet.rolls.records(),
            replicas=[store.record(owner) for owner in owners],
            let_go={}
            if fleet.leaving
            else {name: store.wanted_record(each.profile.name, each) for name, each in fleet.let_go.items()},
        )
