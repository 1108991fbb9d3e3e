"""Carries out rolling changes: `core/rollout.py` decides, and this gives the orders. One roll per profile at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpuserved.api.types import RolloutView
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.rollout import (
    Action,
    Direction,
    Leave,
    Outcome,
    Replace,
    Rollout,
    Seen,
    TurnBack,
    decide,
)
from gpuserved.core.state import State
from gpuserved.fleet.letting_go import let_go, take_back
from gpuserved.fleet.store import RollRecord, wanted_record
from gpuserved.host.failpoint import reach
from gpuserved.planning.arrange import Wanted
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)


@dataclass
class Roll:
    """One rolling change and what it moves between."""

    profile: str
    plan: Rollout
    target: dict[str, Assignment]
    former: dict[str, Assignment]
    """What replicas ran before; what a change that is turned back gives them again."""
    former_wanted: Wanted | None
    began_at: float

    @property
    def under_way(self) -> bool:
        """False once it has an outcome."""
        return self.plan.outcome is None

    def assignment(self, replica: str) -> Assignment | None:
        """What the replica is to run next."""
        back = self.plan.direction is Direction.BACK
        return (self.former if back else self.target).get(replica)


class Rolls:
    """The fleet's rolling changes. Belongs to the fleet's loop; `step()` is called after everything that happens."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.of: dict[str, Roll] = {}

    def begin(self, roll: Roll) -> None:
        """Start a change; it takes the place of the profile's present one."""
        self.of[roll.profile] = roll
        self._say(
            roll, f"rolling change begins: {roll.plan.total} replica{'s' if roll.plan.total > 1 else ''}"
        )
        self.step()

    def under_way(self, profile: str) -> Roll | None:
        """The profile's present change."""
        roll = self.of.get(profile)
        return roll if roll is not None and roll.under_way else None

    def drop(self, profile: str) -> None:
        """Forget the profile's change; replicas keep what they have been given."""
        self.of.pop(profile, None)

    def step(self) -> None:
        """Go on as far as possible now."""
        for roll in list(self.of.values()):
            while roll.under_way:
                before = roll.plan
                roll.plan, action = decide(before, self._seen(roll))
                if action is not None:
                    reach("roll.decided")
                    self._do(roll, action)
                if roll.plan == before:
                    break
                self._tell(roll, before)
                self._fleet.save_quietly()

    def _seen(self, roll: Roll) -> dict[str, Seen]:
        """The model's replicas. Two profiles may serve one name, and its capacity is theirs together."""
        served = {each.profile.served_name for each in roll.target.values()}
        found: dict[str, Seen] = {}
        for name, owner in self._fleet.owners.items():
            profile = owner.assignment.profile
            concerned = profile.name == roll.profile or profile.served_name in served
            # One that waits for a quarantined GPU is nobody's capacity, and cannot be replaced now.
            if concerned and not self._fleet.quarantine.waits(owner):
                found[name] = self._seen_of(owner, roll)
        return found

    def _seen_of(self, owner: ReplicaController, roll: Roll) -> Seen:
        r = owner.r
        other = self.of.get(owner.assignment.profile.name)
        ordered = other is not None and other is not roll and other.plan.current == owner.id
        state = State.DRAINING if ordered and r.state is State.READY else r.state
        return Seen(state, r.goal, r.generation, r.reason)

    def _do(self, roll: Roll, action: Action) -> None:
        owners = self._fleet.owners
        if isinstance(action, TurnBack):
            self._turn_back(roll, action)
            return
        owner, assignment = owners.get(action.replica), roll.assignment(action.replica)
        if owner is None or assignment is None:
            return
        owner.assign(assignment)
        if isinstance(action, Replace):
            # On disk before it happens: a daemon that dies now goes on with this replica.
            self._fleet.save_quietly()
            reach("roll.saved")
            owner.post(EventKind.REPLACE)
            reach("roll.ordered")
        else:
            assert isinstance(action, Leave)

    def _turn_back(self, roll: Roll, action: TurnBack) -> None:
        """What was wanted before is wanted again, whatever the change had started or stopped beside its replacements."""
        fleet, forward = self._fleet, dict(self._fleet.wanted)
        if roll.former_wanted is not None:
            fleet.wanted[roll.profile] = roll.former_wanted
            fleet.generation += 1
        for name in action.stop:
            if name in fleet.owners:
                let_go(fleet, fleet.owners[name], forward)
        for name, assignment in roll.former.items():
            if name not in fleet.owners:
                fleet.add_owner(assignment, EventKind.START)
            elif name not in roll.target:
                take_back(fleet, fleet.owners[name], assignment)
            elif name not in roll.plan.pending:
                fleet.owners[name].assign(assignment)
        reach("roll.turned")

    def _tell(self, roll: Roll, before: Rollout) -> None:
        plan = roll.plan
        if plan.outcome is Outcome.DONE:
            self._say(roll, "rolling change done")
        elif plan.outcome is Outcome.ROLLED_BACK:
            self._say(roll, f"rolled back to what ran before: {plan.reason}")
        elif plan.outcome is Outcome.STOPPED:
            self._say(roll, f"rolling change stopped: {plan.reason}")
        elif plan.direction is not before.direction:
            self._say(roll, f"rolling back: {plan.reason}")
        elif plan.current is not None and plan.current != before.current:
            self._say(roll, f"replacing {plan.current} ({len(plan.done) + 1} of {plan.total})")

    def _say(self, roll: Roll, what: str) -> None:
        message = f"{roll.profile}: {what}"
        log.info("%s", message)
        self._fleet.bus.publish("notice", message=message)

    # --- what others see, and what is saved

    def views(self) -> list[RolloutView]:
        """For `status`."""
        return [_view(roll) for _, roll in sorted(self.of.items())]

    def records(self) -> list[RollRecord]:
        """For the state file."""
        return [
            RollRecord(
                profile=roll.profile,
                plan=roll.plan,
                began_at=roll.began_at,
                former=None
                if roll.former_wanted is None
                else wanted_record(roll.profile, roll.former_wanted),
            )
            for roll in self.of.values()
        ]

    def resume(
        self,
        record: RollRecord,
        target: Mapping[str, Assignment],
        former: Mapping[str, Assignment],
        former_wanted: Wanted | None,
        running: Mapping[str, int],
        orders_read: Collection[str],
    ) -> None:
        """Take up a change that an earlier daemon began. Before the owners begin.

        :param running: generation of each replica, found or recorded.
        :param orders_read: replicas whose owner had read its last order, and will go on with it by itself.
        """
        mine = {name: a for name, a in target.items() if a.profile.name == record.profile}
        before = {name: a for name, a in former.items() if a.profile.name == record.profile}
        roll = Roll(record.profile, record.plan, mine, before, former_wanted, record.began_at)
        self.of[record.profile] = roll
        plan = record.plan
        if not roll.under_way:
            return
        for name, owner in self._fleet.owners.items():
            waiting = name in plan.pending
            ordered = name == plan.current and running.get(name, 0) <= plan.since_generation
            if plan.direction is Direction.FORWARD and name in before and (waiting or ordered):
                owner.restore(owner.r, before[name])
            if ordered and (assignment := roll.assignment(name)) is not None:
                owner.assign(assignment)
                if name not in orders_read:
                    owner.post(EventKind.REPLACE)
        if plan.current is not None and plan.current in plan.added and plan.current in self._fleet.owners:
            # Recorded as STOPPED: its owner may never have read the order.
            roll.plan = replace(plan, current=None, pending=(plan.current, *plan.pending))


def begun(
    profile: str,
    target: Iterable[Assignment],
    former: Iterable[Assignment],
    former_wanted: Wanted | None,
    plan: Rollout,
) -> Roll:
    """A new change of one profile."""
    mine = {each.replica: each for each in target if each.profile.name == profile}
    before = {each.replica: each for each in former if each.profile.name == profile}
    return Roll(profile, plan, mine, before, former_wanted, time.time())


def _view(roll: Roll) -> RolloutView:
    plan = roll.plan
    return RolloutView(
        profile=roll.profile,
        direction=plan.direction.value,
        outcome=plan.outcome.value if plan.outcome else None,
        current=plan.current,
        done=len(plan.done),
        total=plan.total,
        reason=plan.reason or None,
        began_at=roll.began_at,
    )
