"""Which changes become rolling ones, and what each of them moves between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpuserved.api.errors import Conflict
from gpuserved.api.types import Change, PlanWarning
from gpuserved.core.assignment import Assignment
from gpuserved.core.rollout import Rollout
from gpuserved.core.state import State
from gpuserved.fleet.rolling import Roll, begun
from gpuserved.planning.arrange import Wanted
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

_SERVING = frozenset({State.READY, State.UNHEALTHY, State.DRAINING})
"""With none of these there is no capacity to protect, and no need to go one by one."""


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


def for_apply(
    fleet: Fleet,
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
        present = fleet.rolls.under_way(profile)
        mine = {each.replica: each for each in target if each.profile.name == profile}
        if present is not None and _leads_to(present, mine):
            plans.going_on.add(profile)
            continue
        if present is not None:
            plans.superseded.add(profile)
        replaced = [c.replica for c in changed if c.action == "replace"]
        if not replaced or not _any_serves(fleet, profile):
            continue
        traded = _traded(mine, before, [c.replica for c in changed])
        if traded:
            plans.warnings.append(_at_once(profile, traded))
            continue
        plans.rolls.append(_roll(fleet, profile, mine, before, changed))
    return plans


def _leads_to(present: Roll, target: Mapping[str, Assignment]) -> bool:
    """True where the change that is under way ends at these assignments."""
    ends = {name: present.assignment(name) for name in target}
    return len(ends) == len(present.target) and all(
        end is not None
        and end.gpu_uuids == target[name].gpu_uuids
        and end.profile.runs_like(target[name].profile)
        for name, end in ends.items()
    )


def _any_serves(fleet: Fleet, profile: str) -> bool:
    return any(o.r.state in _SERVING for o in fleet.owners.values() if o.assignment.profile.name == profile)


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


def _roll(
    fleet: Fleet,
    profile: str,
    target: Mapping[str, Assignment],
    before: Mapping[str, Assignment],
    changed: Sequence[Change],
) -> Roll:
    names = [c.replica for c in changed if c.action in {"start", "replace"}]
    added = [
        name
        for name in names
        if name not in fleet.owners or fleet.owners[name].moved_away() or name in fleet.let_go
    ]
    former: Sequence[Assignment] = [each for each in before.values() if each.profile.name == profile]
    former_wanted = fleet.wanted.get(profile)
    present = fleet.rolls.under_way(profile)
    if present is not None and present.former_wanted is not None:
        # What ran before the change that this one takes the place of is the last that is known to serve.
        former, former_wanted = list(present.former.values()), present.former_wanted
    same = all(name in before and _same(target[name], before[name]) for name in names if name not in added)
    plan = Rollout(
        pending=tuple(names), added=tuple(added), reversible=former_wanted is not None and not same
    )
    return begun(profile, target.values(), former, former_wanted, plan)


def _same(one: Assignment, other: Assignment) -> bool:
    return one.gpu_uuids == other.gpu_uuids and one.profile.runs_like(other.profile)


def for_restart(fleet: Fleet, names: Sequence[str]) -> list[Roll]:
    """`restart PROFILE`: its replicas one by one. Single replicas, and profiles that serve nothing, are restarted at once.

    :raises Conflict: a rolling change of the profile is under way.
    """
    rolls: list[Roll] = []
    for profile in dict.fromkeys(names):
        if profile in fleet.owners or not _any_serves(fleet, profile):
            continue
        if fleet.rolls.under_way(profile) is not None:
            raise Conflict(
                f"{profile} is in the middle of a rolling change",
                "gpuserve status shows how far it is; single replicas (PROFILE-N) can be restarted meanwhile",
            )
        owners = _wanted_up(fleet.named(profile))
        assignments = [owner.next_assignment or owner.assignment for owner in owners]
        plan = Rollout(pending=tuple(owner.id for owner in owners), reversible=False)
        rolls.append(begun(profile, assignments, assignments, None, plan))
    return rolls


def _wanted_up(owners: Sequence[ReplicaController]) -> list[ReplicaController]:
    """A stopped replica stays stopped through a restart of its profile."""
    return [owner for owner in owners if not owner.moved_away()]
