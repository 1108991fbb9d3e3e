"""The durable state: what is wanted, and what each replica's past says. A cache of the truth, which is in the live shims."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.core.cause import Cause
from gpuserved.core.restart import RestartHistory
from gpuserved.core.rollout import Rollout
from gpuserved.core.state import Goal, Replica, State
from gpuserved.host import statefile
from gpuserved.planning.arrange import Solution, Wanted
from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

SCHEMA = 1


class WantedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One profile as it was applied."""

    name: str
    text: str
    source: str
    scaled: int | None = None
    solved: Solution | None = None


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One replica."""

    id: str
    profile: str
    gpu_uuids: tuple[str, ...] = ()
    state: State
    goal: Goal
    generation: int
    reason: str = ""
    cause: Cause | None = None
    history: RestartHistory = RestartHistory()
    drains_until: float | None = None
    """When its drain ends whatever is in flight: seconds of the monotonic clock, which all processes of a boot share."""

    def replica(self) -> Replica:
        """Its place in the lifecycle as it was saved."""
        return Replica(self.state, self.goal, self.generation, self.history, self.cause, self.reason)


class RollRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A rolling change, under way or the last one of its profile."""

    profile: str
    plan: Rollout
    former: WantedRecord | None = None
    """What it goes back to; None: nothing."""
    began_at: float
    """Unix seconds."""


class FleetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    generation: int = 0
    wanted: list[WantedRecord] = []
    replicas: list[ReplicaRecord] = []
    rolls: list[RollRecord] = []
    let_go: dict[str, WantedRecord] = {}
    """Replicas that are on their way out, and what was wanted while they had a place."""


def record(owner: ReplicaController) -> ReplicaRecord:
    """The record of one replica now."""
    r, assignment = owner.r, owner.assignment
    return ReplicaRecord(
        id=owner.id, profile=assignment.profile.name, gpu_uuids=assignment.gpu_uuids, state=r.state, goal=r.goal,
        generation=r.generation, reason=r.reason, cause=r.cause, history=r.history, drains_until=owner.drains_until,
    )  # fmt: skip


def wanted_record(name: str, wanted: Wanted) -> WantedRecord:
    """A profile as it is saved."""
    return WantedRecord(
        name=name, text=wanted.text, source=wanted.source, scaled=wanted.scaled, solved=wanted.solved
    )


def save(path: Path, fleet: FleetRecord) -> None:
    """Write the file.

    :raises OSError: the file before it is untouched.
    """
    data: dict[str, Any] = msgspec.to_builtins(fleet)
    statefile.save(path, data, version=SCHEMA)


def check_readable(path: Path) -> None:
    """Change nothing, and refuse what `load` would.

    :raises Invalid: a newer version wrote it.
    """
    statefile.check_version(path, version=SCHEMA)


def load(path: Path) -> tuple[FleetRecord, str | None]:
    """The record, and what was wrong with the file (then an older one, or nothing, was taken)."""
    found = statefile.load(path, version=SCHEMA)
    if found.data is None:
        return FleetRecord(), found.problem
    try:
        return msgspec.convert(found.data, FleetRecord), found.problem
    except msgspec.ValidationError as error:
        return FleetRecord(), f"{path} makes no sense ({error}); starting without it"
