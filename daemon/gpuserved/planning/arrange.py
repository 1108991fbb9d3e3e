"""From profiles to assignments: what should run where, and what an apply changes. No I/O; errors are the operator's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpuserved.api.errors import Refused
from gpuserved.api.types import Change, PlanWarning
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import CauseKind
from gpuserved.core.placement import Gpu, Lease, NoFit, Placements, with_simulated
from gpuserved.core.planner.decide import place, unmeasured
from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.planner.options import Lookup
from gpuserved.core.profile import Profile, Takes
from gpuserved.core.state import Replica, State


@dataclass(frozen=True)
class Solution:
    """What the planner decided for a profile, kept until the profile changes: a restart of the daemon decides nothing anew."""

    tensor_parallel_size: int
    data_parallel_size: int = 1
    max_model_len: int | None = None
    utilization: float | None = None

    def applied(self, profile: Profile) -> Profile:
        """The profile with it."""
        flags = dict(profile.flags)
        if self.utilization is not None:
            flags.setdefault("gpu_memory_utilization", self.utilization)
        return replace(
            profile,
            tensor_parallel_size=self.tensor_parallel_size,
            data_parallel_size=self.data_parallel_size,
            max_model_len=self.max_model_len or profile.max_model_len,
            flags=flags,
        )


@dataclass(frozen=True)
class Wanted:
    """One applied profile."""

    text: str
    source: str
    profile: Profile
    scaled: int | None = None
    """An operator's `scale`, until the profile is applied again."""
    solved: Solution | None = None

    @property
    def effective(self) -> Profile:
        """The profile with the scale."""
        return self.profile if self.scaled is None else replace(self.profile, replicas=self.scaled)

    @property
    def base(self) -> Profile:
        """That with what the planner decided, where it has."""
        return self.effective if self.solved is None else self.solved.applied(self.effective)


@dataclass(frozen=True)
class Inputs:
    """What one profile is planned with, beside the inventory."""

    facts: ModelFacts | Unknown | None = None
    lookup: Lookup = unmeasured
    version: str | None = None
    """Of the engine that will run; None: unknown."""


@dataclass(frozen=True)
class Arranged:
    """Every replica that should exist."""

    assignments: tuple[Assignment, ...]
    warnings: tuple[PlanWarning, ...]
    placements: dict[str, Placements] = field(default_factory=dict)
    """By profile."""
    unplanned: frozenset[str] = frozenset()
    """Profiles whose model nobody knows yet: they are planned when they are applied again, and their model is here."""

    def solutions(self) -> dict[str, Solution]:
        """By profile; those that run without GPUs, or not at all, have none."""
        return {
            name: Solution(first.tensor_parallel_size, first.data_parallel_size, first.max_model_len, first.utilization)
            for name, each in self.placements.items()
            if (first := next(iter(each.replicas), None)) is not None and first.gpus and name not in self.unplanned
        }  # fmt: skip


def arrange(
    wanted: Mapping[str, Wanted],
    inventory: Sequence[Gpu],
    held: Mapping[str, tuple[str, ...]],
    inputs: Mapping[str, Inputs] | None = None,
    taken: Sequence[Lease] = (),
    quarantined: Mapping[str, str] | None = None,
    waiting: Collection[str] = (),
) -> Arranged:
    """Place all profiles on one host.

    :param held: GPU UUIDs that replicas have now; they stay where they can.
    :param taken: leases of other daemons; what is solved is not weighed against them, its start is.
    :param inputs: of each profile that is to be planned by memory; the others are placed as they were.
    :param quarantined: GPU UUIDs on which nothing may be placed, with the reason. A replica that holds one, and for which there
        is no other, keeps it, and waits for its release.
    :param waiting: replicas that wait so already, and hold their GPUs in name only: others may have taken them.
    :raises Refused: a profile does not fit; names what is short and the smallest change.
    """
    gpus = with_simulated(inventory, [each.profile for each in wanted.values()])
    gpus = [replace(gpu, blocked=(quarantined or {}).get(gpu.uuid, gpu.blocked)) for gpu in gpus]
    ours = [
        replace(gpu, memory_used_bytes=None) for gpu in gpus
    ]  # what runs is not weighed against today's free memory
    keep = _undisputed(held, waiting)
    leases: list[Lease] = []
    assignments: list[Assignment] = []
    warnings: list[PlanWarning] = []
    placements: dict[str, Placements] = {}
    # Profiles that hold GPUs come first, so that one that is new is placed around them.
    order = sorted(wanted, key=lambda name: not any(r.rsplit("-", 1)[0] == name and held[r] for r in held))
    for at, name in enumerate(order):
        each, about = wanted[name], (inputs or {}).get(name, Inputs())
        profile = each.effective
        others = [*leases, *_claims({later: wanted[later] for later in order[at + 1 :]}, keep, gpus)]
        if each.solved is not None:
            found = place(each.base, ours, others, keep=keep, settled=True)
        else:
            found = _planned(profile, gpus, [*others, *taken], keep, about)
        mine = {r: held[r] for r in held if r.rsplit("-", 1)[0] == name and held[r]}
        waits = each.solved is not None and (_all_wait(mine, gpus) or not mine.keys().isdisjoint(waiting))
        if isinstance(found, NoFit) and waits:
            found = Placements(())
        if isinstance(found, NoFit):
            raise Refused(found.message, found.hint, {"code": found.code, "levers": [vars(lever) for lever in found.levers]})  # fmt: skip
        placements[name] = found
        warnings += [PlanWarning(code=each.code, message=each.message) for each in found.warnings]
        for placed in found.replicas:
            uuids = tuple(gpu.uuid for gpu in placed.gpus)
            indexes = tuple(gpu.index for gpu in placed.gpus)
            assignments.append(Assignment(placed.replica, placed.resolved(each.base), indexes, uuids))
            leases += [Lease(uuid, placed.replica, profile.gpu_share or 1.0) for uuid in uuids]
        assignments += _waiting(each.base, found, mine, gpus, waiting)
    unplanned = frozenset(
        name
        for name, each in wanted.items()
        if each.solved is None
        and (name not in (inputs or {}) or isinstance((inputs or {})[name].facts, Unknown))
    )
    return Arranged(tuple(assignments), tuple(warnings), placements, unplanned)


def lacks_gpu(replica: Replica) -> bool:
    """True where it runs nowhere because its GPU is set aside."""
    cause = replica.cause
    return replica.state is State.FAILED and cause is not None and cause.kind is CauseKind.GPU_QUARANTINED


def _undisputed(held: Mapping[str, tuple[str, ...]], waiting: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What each replica has a claim to: one that waits gives way to whoever got a GPU of its own meanwhile."""
    busy = {uuid for replica, uuids in held.items() if replica not in waiting for uuid in uuids}
    return {
        replica: uuids for replica, uuids in held.items() if replica not in waiting or busy.isdisjoint(uuids)
    }


def _planned(
    profile: Profile,
    gpus: Sequence[Gpu],
    leases: Sequence[Lease],
    keep: Mapping[str, tuple[str, ...]],
    about: Inputs,
) -> Placements | NoFit:
    return place(
        profile, gpus, leases, keep=keep, facts=about.facts, lookup=about.lookup, version=about.version
    )


def _claims(
    wanted: Mapping[str, Wanted], keep: Mapping[str, tuple[str, ...]], gpus: Sequence[Gpu]
) -> list[Lease]:
    """Where replicas of profiles that are not planned anew stay: nobody else is placed there, whose turn ever it is."""
    blocked = {gpu.uuid for gpu in gpus if gpu.blocked}
    found = []
    for replica, uuids in keep.items():
        name, _, number = replica.rpartition("-")
        each = wanted.get(name)
        if each is None or each.solved is None or not number.isdigit():
            continue
        profile = each.base
        counted = profile.replicas is None or int(number) < profile.replicas
        if counted and len(uuids) == profile.gpus_per_replica and blocked.isdisjoint(uuids):
            found += [Lease(uuid, replica, profile.gpu_share or 1.0) for uuid in uuids]
    return found


def _all_wait(mine: Mapping[str, tuple[str, ...]], gpus: Sequence[Gpu]) -> bool:
    """True where GPUs that are set aside are what keeps a profile, which ran, from being placed at all."""
    blocked = {gpu.uuid for gpu in gpus if gpu.blocked}
    return bool(blocked & {uuid for uuids in mine.values() for uuid in uuids})


def _waiting(
    base: Profile,
    found: Placements,
    mine: Mapping[str, tuple[str, ...]],
    gpus: Sequence[Gpu],
    before: Collection[str],
) -> list[Assignment]:
    """The replicas whose GPUs are set aside, or were, and that fit nowhere else: they keep them.

    :param before: those that waited already.
    """
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    placed = {each.replica for each in found.replicas}
    profile = found.replicas[0].resolved(base) if found.replicas else base
    waiting = []
    for replica, uuids in sorted(mine.items()):
        number = replica.rpartition("-")[2]
        counted = number.isdigit() and (base.replicas is None or int(number) < base.replicas)
        there = [by_uuid[uuid] for uuid in uuids if uuid in by_uuid]
        if (
            counted
            and replica not in placed
            and there
            and (replica in before or any(gpu.blocked for gpu in there))
        ):
            indexes = tuple(gpu.index for gpu in there)
            waiting.append(Assignment(replica, profile, indexes, tuple(gpu.uuid for gpu in there)))
    return waiting


def changes(
    before: Mapping[str, Assignment], after: Sequence[Assignment], leaving: Collection[str] = ()
) -> list[Change]:
    """What becomes of each replica.

    :param leaving: those that had been let go, and are not gone yet.
    """
    found: list[Change] = []
    for new in after:
        old = before.get(new.replica)
        if old is None:
            found.append(Change(replica=new.replica, action="start", why="new"))
        elif not new.profile.runs_like(old.profile):
            found.append(
                Change(replica=new.replica, action="replace", why=difference(old.profile, new.profile))
            )
        elif new.gpu_uuids != old.gpu_uuids:
            found.append(Change(replica=new.replica, action="replace", why="other GPUs"))
        elif new.replica in leaving:
            found.append(Change(replica=new.replica, action="resume", why="it was on its way out"))
        else:
            found.append(Change(replica=new.replica, action="keep", why="its process need not change"))
    kept = {new.replica for new in after}
    found += [
        Change(replica=name, action="stop", why="no longer wanted") for name in before if name not in kept
    ]
    return found


def difference(old: Profile, new: Profile) -> str:
    """The settings that make a new process necessary, of flags and variables the names alone: values may be secret."""
    found: list[str] = []
    for name in new.differs(old, Takes.PROCESS):
        if name == "flags":
            keys = old.flags.keys() | new.flags.keys()
            found += [
                f"[{new.engine.value}] {key}"
                for key in sorted(keys)
                if old.flags.get(key) != new.flags.get(key)
            ]
        else:
            found.append("[env]" if name == "env" else name)
    return "changed: " + ", ".join(found)
