"""How a daemon ends: with everything, in favour of another version, or alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from gpuserved.app.succession import Successor
from gpuserved.fleet.fleet import Fleet
from gpuserved.fleet.letting_go import let_go
from gpuserved.host.failpoint import reach
from gpuserved.host.systemd import PortStore

_POLL_S = 0.05


@dataclass(frozen=True)
class Stop:
    """How everything is to be stopped."""

    drain: bool
    forget: bool
    """Forget what was wanted: the next daemon starts empty."""


@dataclass(frozen=True)
class Abandoned:
    """The daemon that this one was to replace died before systemd knew of this one, and systemd starts another: two are too many."""


End = Stop | Successor | Abandoned | None
"""Everything stops; another version takes over; the daemon ends alone, as a failure or because it was told to."""


def exit_code(how: Stop | Abandoned | None) -> int:
    """Not 0 after a failure: systemd starts another then, whichever of the two it takes for the main one."""
    return 1 if isinstance(how, Abandoned) else 0


def farewell(how: Stop | Abandoned | None) -> str:
    """For the log and the events."""
    if isinstance(how, Abandoned):
        return "the daemon before this one died in the middle of the upgrade; systemd starts another, and this one ends"
    if how is None:
        return "the daemon ends; replicas and router go on"
    return "stopping everything" if how.drain else "stopping everything at once"


async def stop_everything(fleet: Fleet, how: Stop, store: PortStore) -> None:
    """Stop all replicas, then the router, and let go of the port. What was wanted is forgotten only where the operator said `down`."""
    wanted, fleet.wanted = fleet.wanted, {}
    fleet.leaving = {} if how.forget else wanted
    fleet.rolls.of.clear()
    for owner in fleet.owners.values():
        if not how.drain:
            limits = replace(owner.assignment.profile.limits, drain_s=0.0)
            profile = replace(owner.assignment.profile, limits=limits)
            owner.assign(replace(owner.assignment, profile=profile))
        let_go(fleet, owner, wanted, at_once=not how.drain)
    reach("down.begun")
    while fleet.owners:  # each leaves the fleet once its tree is gone
        await asyncio.sleep(_POLL_S)
    fleet.generation += 1
    fleet.save_quietly()
    reach("down.emptied")
    await fleet.router.stop()
    reach("down.ended")
    await store.drop()
    (fleet.roots.run / "routing.json").unlink(missing_ok=True)
