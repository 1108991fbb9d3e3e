"""What an operator asks of single replicas, or of all of a profile: start, stop, restart, drain, undrain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuserved.api.errors import Conflict
from gpuserved.api.types import ActionResult, ReplicasRequest
from gpuserved.core.events import EventKind
from gpuserved.core.state import NotAllowed
from gpuserved.fleet import rollplan
from gpuserved.host.failpoint import reach

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


async def act(fleet: Fleet, verb: str, request: ReplicasRequest) -> ActionResult:
    """Carry out one verb. `restart PROFILE` becomes a rolling change.

    :raises NotFound: or Conflict: nothing was touched.
    """
    owners = [owner for name in request.replicas for owner in fleet.named(name)]
    _expect_starts(fleet, request.replica_generations)
    rolls = rollplan.for_restart(fleet, request.replicas) if verb == EventKind.RESTART.value else []
    rolled = {name for roll in rolls for name in roll.plan.pending}
    fleet.generation += 1
    for roll in rolls:
        fleet.rolls.begin(roll)
    states = {name: fleet.owners[name].r.state.value for name in rolled}
    refused: dict[str, str] = {}
    for owner in dict.fromkeys(owner for owner in owners if owner.id not in rolled):
        try:
            states[owner.id] = (await owner.ask(EventKind(verb))).value
        except NotAllowed as error:
            refused[owner.id] = str(error)
    if refused and not states:
        name, why = next(iter(refused.items()))
        raise Conflict(f"{name}: {why}", "see `gpuserve status`")
    reach("act.done")
    # Before the answer: what an operator was told is done outlives this daemon.
    fleet.save_quietly()
    reach("act.saved")
    return ActionResult(generation=fleet.generation, replicas=states, refused=refused)


def _expect_starts(fleet: Fleet, seen: dict[str, int]) -> None:
    """Refuse an action on replicas that are not what the operator saw.

    :raises Conflict: one of them has been started anew since; none was touched.
    """
    for name, generation in seen.items():
        now = fleet.owners[name].r.generation if name in fleet.owners else None
        if now != generation:
            what = "is gone" if now is None else f"was started again (start {now}, seen was {generation})"
            raise Conflict(f"{name} {what} since; nothing was done", "look again, then repeat")
