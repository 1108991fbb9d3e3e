"""Rolling changes: which changes become one, and how each is carried out. `core/rollout.py` decides every step.

One change per profile at a time. One task takes the steps, each of them on disk before its order is given: a daemon that dies in
between goes on with the same replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpuserved.api.errors import Conflict
from gpuserved.api.types import Change, PlanWarning, RolloutView
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
from gpuserved.fleet.events import Bus
from gpuserved.fleet.orders import Executor, same_process, to_turn_back
from gpuserved.fleet.persistence import RollRecord, wanted_record
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.state import FleetState
from gpuserved.fleet.views import order
from gpuserved.host.failpoint import reach
from gpuserved.host.tasks import Tasks
from gpuserved.planning.arrange import Wanted
from gpuserved.replica.snapshot import ReplicaSnapshot

log = logging.getLogger(__name__)

_DOWN = frozenset({State.FAILED, State.BACKOFF, State.STARTING})


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


@dataclass
class RollPlans:
    """What becomes of the rolling changes of the profiles that one apply touches."""

    rolls: list[Roll] = field(default_factory=list)
    going_on: set[str] = field(default_factory=set)
    """Profiles whose present rolling change leads where this apply wants to go."""
    superseded: set[str] = field(default_factory=set)
    """Profiles whose present rolling change is over."""
    warnings: list[PlanWarning] = field(default_factory=list)

    def handles(self, change: Change) -> bool:
        """True where a rolling change carries this out."""
        profile = change.replica.rpartition("-")[0]
        rolled = {roll.profile for roll in self.rolls} | self.going_on
        return profile in rolled and change.action in {"start", "replace"}


class Rollouts:
    """The rolling changes of one fleet."""

    def __init__(
        self,
        state: FleetState,
        executor: Executor,
        quarantine: Quarantine,
        bus: Bus,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        """:param save: has the state on disk before it returns, or says elsewhere that the disk refuses."""
        self._state = state
        self._executor = executor
        self._quarantine = quarantine
        self._bus = bus
        self._save = save
        self._of: dict[str, Roll] = {}
        self._tasks = Tasks(log)
        self._due = asyncio.Event()

    def open(self) -> None:
        """Take steps from now on."""
        self._tasks.start(self._run(), "rolling changes")

    async def close(self) -> None:
        """Take no more steps; the next daemon does."""
        await self._tasks.close()

    # --- which changes become rolling ones

    def plan_for(
        self,
        wanted: Mapping[str, Wanted],
        target: Sequence[Assignment],
        before: Mapping[str, Assignment],
        found: Sequence[Change],
    ) -> RollPlans:
        """Plan the rolling changes of an apply. Nothing is changed yet.

        :param target: every replica's assignment after it.
        :param before: what each replica runs, or is about to run, now.
        :param found: what the apply does to each replica.
        """
        plans = RollPlans()
        for profile in sorted(wanted):
            changed = [c for c in found if c.replica.rpartition("-")[0] == profile and c.action != "keep"]
            present = self.under_way(profile)
            mine = {each.replica: each for each in target if each.profile.name == profile}
            if present is not None and _leads_to(present, mine):
                plans.going_on.add(profile)
                continue
            if present is not None:
                plans.superseded.add(profile)
            replaced = [c.replica for c in changed if c.action == "replace"]
            if not replaced or not self._any_serves(profile):
                continue
            traded = _traded(mine, before, [c.replica for c in changed])
            if traded:
                plans.warnings.append(_at_once(profile, traded))
                continue
            plans.rolls.append(self._planned(profile, mine, before, changed))
        return plans

    def _planned(
        self,
        profile: str,
        target: Mapping[str, Assignment],
        before: Mapping[str, Assignment],
        changed: Sequence[Change],
    ) -> Roll:
        replicas, removals = self._state.snapshots(), self._state.removals
        names = [c.replica for c in changed if c.action in {"start", "replace"}]
        added = [name for name in names if name not in replicas or replicas[name].is_down or name in removals]
        former: Sequence[Assignment] = [each for each in before.values() if each.profile.name == profile]
        former_wanted = self._state.desired.get(profile)
        present = self.under_way(profile)
        if present is not None and present.former_wanted is not None:
            # What ran before the change that this one takes the place of is the last that is known to serve.
            former, former_wanted = list(present.former.values()), present.former_wanted
        same = all(
            name in before and same_process(target[name], before[name]) for name in names if name not in added
        )
        plan = Rollout(
            pending=tuple(names), added=tuple(added), reversible=former_wanted is not None and not same
        )
        return _begun(profile, target.values(), former, former_wanted, plan)

    def plan_restart(self, names: Sequence[str]) -> list[Roll]:
        """`restart PROFILE`: its replicas one by one. Single replicas, and profiles that serve nothing, are restarted at once.

        :param names: replicas and profiles.
        :raises Conflict: a rolling change of the profile is under way.
        """
        replicas = self._state.snapshots()
        rolls: list[Roll] = []
        for profile in dict.fromkeys(names):
            if profile in replicas or not self._any_serves(profile):
                continue
            if self.under_way(profile) is not None:
                raise Conflict(
                    f"{profile} is in the middle of a rolling change",
                    "gpuserve status shows how far it is; single replicas (PROFILE-N) can be restarted meanwhile",
                )
            mine = [each for each in replicas.values() if each.assignment.profile.name == profile]
            # A stopped replica stays stopped through a restart of its profile.
            up = sorted((each for each in mine if not each.is_down), key=lambda each: order(each.id))
            assignments = [each.target for each in up]
            plan = Rollout(pending=tuple(each.id for each in up), reversible=False)
            rolls.append(_begun(profile, assignments, assignments, None, plan))
        return rolls

    def _any_serves(self, profile: str) -> bool:
        """Else there is no capacity to protect, and no need to go one by one."""
        return any(
            c.r.state.serves for c in self._state.replicas.values() if c.assignment.profile.name == profile
        )

    # --- their life

    def begin(self, roll: Roll) -> None:
        """Start a change; it takes the place of the profile's present one."""
        self._of[roll.profile] = roll
        replicas = f"{roll.plan.total} replica{'s' if roll.plan.total > 1 else ''}"
        self._say(roll, f"rolling change begins: {replicas}")
        self.wake()

    def under_way(self, profile: str) -> Roll | None:
        """The profile's present change."""
        roll = self._of.get(profile)
        return roll if roll is not None and roll.under_way else None

    def profiles(self) -> list[str]:
        """Those that a change is known of, under way or over."""
        return list(self._of)

    def drop(self, profile: str) -> None:
        """Forget the profile's change; replicas keep what they have been given."""
        self._of.pop(profile, None)

    def wake(self) -> None:
        """Something has happened: look whether there is a step to take."""
        self._due.set()

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            for roll in list(self._of.values()):
                try:
                    while await self._step(roll):
                        pass
                except Exception:
                    log.exception("%s: a step of its rolling change failed", roll.profile)

    async def _step(self, roll: Roll) -> bool:
        """One step. False: there is none to take now."""
        if not roll.under_way or self._of.get(roll.profile) is not roll:
            return False
        before = roll.plan
        roll.plan, action = decide(before, self._seen(roll))
        if roll.plan == before and action is None:
            return False
        if action is not None:
            reach("roll.decided")
            self._prepare(roll, action)
        self._tell(roll, before)
        await self._save()
        if isinstance(action, Replace):
            reach("roll.saved")
            self._order(roll, action)
            reach("roll.ordered")
        return True

    def _seen(self, roll: Roll) -> dict[str, Seen]:
        """The model's replicas. Two profiles may serve one name, and its capacity is theirs together."""
        served = {each.profile.served_name for each in roll.target.values()}
        found: dict[str, Seen] = {}
        for name, replica in self._state.snapshots().items():
            profile = replica.assignment.profile
            concerned = profile.name == roll.profile or profile.served_name in served
            # One that waits for a quarantined GPU is nobody's capacity, and cannot be replaced now.
            if concerned and not self._waits_for_release(replica):
                found[name] = self._seen_of(replica, roll)
        return found

    def _waits_for_release(self, replica: ReplicaSnapshot) -> bool:
        down = replica.process is None and replica.r.state in _DOWN
        return down and any(uuid in self._quarantine for uuid in replica.target.gpu_uuids)

    def _seen_of(self, replica: ReplicaSnapshot, roll: Roll) -> Seen:
        r = replica.r
        other = self._of.get(replica.assignment.profile.name)
        ordered = other is not None and other is not roll and other.plan.current == replica.id
        state = State.DRAINING if ordered and r.state is State.READY else r.state
        return Seen(state, r.goal, r.generation, r.reason)

    def _prepare(self, roll: Roll, action: Action) -> None:
        if isinstance(action, TurnBack):
            self._turn_back(roll, action)
            return
        assert isinstance(action, (Replace, Leave))
        controller, assignment = self._state.replicas.get(action.replica), roll.assignment(action.replica)
        if controller is not None and assignment is not None:
            controller.assign(assignment)

    def _order(self, roll: Roll, action: Replace) -> None:
        """Unless something else has been decided while it was being saved."""
        controller = self._state.replicas.get(action.replica)
        goes_on = self._of.get(roll.profile) is roll and roll.plan.current == action.replica
        if controller is not None and goes_on and roll.assignment(action.replica) is not None:
            controller.post(EventKind.REPLACE)

    def _turn_back(self, roll: Roll, action: TurnBack) -> None:
        """What was wanted before is wanted again, whatever the change had started or stopped beside its replacements."""
        forward = dict(self._state.desired)
        if roll.former_wanted is not None:
            self._state.commit({**forward, roll.profile: roll.former_wanted})
        orders = to_turn_back(
            roll.former, self._state.snapshots(), self._state.removals,
            added=action.stop, stays=roll.target, pending=roll.plan.pending,
        )  # fmt: skip
        self._executor.carry_out(orders, forward)
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
        self._bus.publish("notice", message=message)

    # --- what others see, and what is saved

    def views(self) -> list[RolloutView]:
        """For `status`."""
        return [_view(roll) for _, roll in sorted(self._of.items())]

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
            for roll in self._of.values()
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
        """Go on with a change that an earlier daemon began. Before the controllers begin.

        :param running: generation of each replica, found or recorded.
        :param orders_read: replicas whose controller had read its last order, and will go on with it by itself.
        """
        mine = {name: a for name, a in target.items() if a.profile.name == record.profile}
        before = {name: a for name, a in former.items() if a.profile.name == record.profile}
        roll = Roll(record.profile, record.plan, mine, before, former_wanted, record.began_at)
        self._of[record.profile] = roll
        plan = record.plan
        if not roll.under_way:
            return
        for name, controller in self._state.replicas.items():
            waiting = name in plan.pending
            ordered = name == plan.current and running.get(name, 0) <= plan.since_generation
            if plan.direction is Direction.FORWARD and name in before and (waiting or ordered):
                controller.restore(controller.r, before[name])
            if ordered and (assignment := roll.assignment(name)) is not None:
                controller.assign(assignment)
                if name not in orders_read:
                    controller.post(EventKind.REPLACE)
        if plan.current is not None and plan.current in plan.added and plan.current in self._state.replicas:
            # Recorded as STOPPED: its controller may never have read the order.
            roll.plan = replace(plan, current=None, pending=(plan.current, *plan.pending))


def _begun(
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


def _leads_to(present: Roll, target: Mapping[str, Assignment]) -> bool:
    """True where the change that is under way ends at these assignments."""
    ends = {name: present.assignment(name) for name in target}
    return len(ends) == len(present.target) and all(
        end is not None and same_process(end, target[name]) for name, end in ends.items()
    )


def _traded(
    target: Mapping[str, Assignment], before: Mapping[str, Assignment], changed: Sequence[str]
) -> list[str]:
    """Replicas that need a GPU which another one of the change still holds: they cannot go one by one."""
    return [
        name
        for name in changed
        if name in target
        and any(
            _moves_to(target[name], before.get(name)) & set(before[other].gpu_uuids)
            for other in changed
            if other != name and other in before
        )
    ]


def _moves_to(after: Assignment, before: Assignment | None) -> set[str]:
    """GPUs that the replica does not have yet."""
    return set(after.gpu_uuids) - set(before.gpu_uuids if before is not None else ())


def _at_once(profile: str, traded: Sequence[str]) -> PlanWarning:
    return PlanWarning(
        code="replaced_at_once",
        message=f"{profile}: {', '.join(traded)} need GPUs that other replicas of it hold, so they are not replaced one by "
        "one: all that change are stopped first, and requests wait",
    )
