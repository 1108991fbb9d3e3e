"""From profiles to assignments: what should run where, and what an apply changes. No I/O; errors are the operator's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpuserved.api.errors import Refused
from gpuserved.api.types import Change, PlanWarning
from gpuserved.core.placement import Gpu, Lease, NoFit, place, with_simulated
from gpuserved.core.profile import Profile
from gpuserved.supervisor.surroundings import Assignment


@dataclass(frozen=True)
class Wanted:
    """One applied profile."""

    text: str
    source: str
    profile: Profile
    scaled: int | None = None
    """An operator's `scale`, until the profile is applied again."""

    @property
    def effective(self) -> Profile:
        """The profile with the scale."""
        return self.profile if self.scaled is None else replace(self.profile, replicas=self.scaled)


@dataclass(frozen=True)
class Arranged:
    """Every replica that should exist."""

    assignments: tuple[Assignment, ...]
    warnings: tuple[PlanWarning, ...]


def arrange(
    wanted: Mapping[str, Wanted], inventory: Sequence[Gpu], held: Mapping[str, tuple[str, ...]]
) -> Arranged:
    """Place all profiles on one host.

    :param held: GPU UUIDs that replicas have now; they stay where they can.
    :raises Refused: a profile does not fit; names what is short and the smallest change.
    """
    gpus = with_simulated(inventory, [each.profile for each in wanted.values()])
    leases: list[Lease] = []
    assignments: list[Assignment] = []
    warnings: list[PlanWarning] = []
    # Profiles that hold GPUs come first, so that one that is new is placed around them.
    order = sorted(wanted, key=lambda name: not any(r.rsplit("-", 1)[0] == name and held[r] for r in held))
    for name in order:
        profile = wanted[name].effective
        found = place(profile, gpus, leases, keep=held)
        if isinstance(found, NoFit):
            raise Refused(found.message, found.hint, {"code": found.code})
        warnings += [PlanWarning(code=each.code, message=each.message) for each in found.warnings]
        for placed in found.replicas:
            uuids = tuple(gpu.uuid for gpu in placed.gpus)
            indexes = tuple(gpu.index for gpu in placed.gpus)
            assignments.append(Assignment(placed.replica, profile, indexes, uuids))
            leases += [Lease(uuid, placed.replica) for uuid in uuids]
    return Arranged(tuple(assignments), tuple(warnings))


def changes(before: Mapping[str, Assignment], after: Sequence[Assignment]) -> list[Change]:
    """What becomes of each replica."""
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
        else:
            found.append(Change(replica=new.replica, action="keep", why="its process need not change"))
    kept = {new.replica for new in after}
    found += [
        Change(replica=name, action="stop", why="no longer wanted") for name in before if name not in kept
    ]
    return found


def difference(old: Profile, new: Profile) -> str:
    """The settings that make a new process necessary."""
    names = (
        "model", "served_name", "engine", "python", "tensor_parallel_size", "max_model_len", "gpus", "command",
    )  # fmt: skip
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    keys = sorted(
        key for key in old.flags.keys() | new.flags.keys() if old.flags.get(key) != new.flags.get(key)
    )
    changed += [f"[{new.engine.value}] {key}" for key in keys]
    if old.env != new.env:
        changed.append("[env]")  # names only: values may be secret
    return "changed: " + ", ".join(changed)
