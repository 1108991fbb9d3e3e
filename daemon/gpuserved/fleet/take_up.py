"""When a daemon starts: desired state from disk, live replicas from their shims, and rolling changes where they were."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpuserved.api.errors import GpuserveError
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.placement import Gpu
from gpuserved.core.state import Goal
from gpuserved.fleet import adopt, store
from gpuserved.fleet import apply as applying
from gpuserved.host import statefile
from gpuserved.host.failpoint import reach
from gpuserved.planning.arrange import Wanted, arrange, lacks_gpu
from gpuserved.replica import start_files
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.start_files import FoundStart

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)


async def take_up(fleet: Fleet) -> None:
    """Desired state from disk, live replicas from their shims."""
    _discard_unfinished(fleet)
    saved, problem = store.load(fleet.roots.state / "fleet.json")
    reach("adopt.read")
    fleet.degraded = problem
    if problem:
        log.error("%s", problem)
    fleet.quarantine.load()
    fleet.generation = saved.generation
    fleet.wanted = _wanted(fleet, saved)
    fleet.gpus.simulate([each.profile for each in fleet.wanted.values()])
    records = {record.id: record for record in saved.replicas}
    held = {name: record.gpu_uuids for name, record in records.items()}
    found, unexplained = start_files.scan(fleet.roots.run)
    reach("adopt.scanned")
    by_age = sorted(found, key=lambda each: each.note.generation)
    notes = {each.note.replica: each.note.gpu_uuids for each in by_age}
    there = await applying.inventory_of(fleet, fleet.wanted)
    used = (uuids for name, uuids in {**held, **notes}.items() if name.rpartition("-")[0] in fleet.wanted)
    fleet.quarantine.set_aside_missing(there, {uuid for uuids in used for uuid in uuids})
    inventory, blocked = fleet.quarantine.with_missing(there), fleet.quarantine.blocked()
    waiting = [name for name, record in records.items() if name not in notes and lacks_gpu(record.replica())]
    arranged = arrange(fleet.wanted, inventory, {**held, **notes}, quarantined=blocked, waiting=waiting)
    placed = {each.replica for each in arranged.assignments}
    leaving = _let_go(fleet, saved, placed)
    ours, strays = adopt.match(found, records, placed | leaving.keys())
    for assignment in arranged.assignments:
        owner = _owner(fleet, assignment, notes.get(assignment.replica), inventory)
        record = records.get(assignment.replica)
        if record is not None:
            # From the first moment as it was saved: whatever makes the fleet save again meanwhile must not forget it.
            owner.restore(record.replica())
        fleet.owners[assignment.replica] = owner
    running = {name: record.generation for name, record in records.items()}
    running |= {name: each.note.generation for name, each in ours.items()}
    await _take_up_rolls(fleet, saved, held | notes, running)
    for stray in strays:
        log.warning("ending a replica that nobody wants: %s", stray.describe())
    ends = [adopt.end_stray(s.folder, s.note.nonce) for s in strays]
    await asyncio.gather(*ends, *(adopt.end_stray(folder, folder.name) for folder in unexplained))
    # All at once: a shim that does not answer costs its own replica time, not the others.
    await asyncio.gather(
        *(_take_up_one(owner, ours.get(name), records.get(name)) for name, owner in fleet.owners.items()),
        *(
            _take_up_leaving(fleet, each, ours[name], records.get(name), inventory)
            for name, each in leaving.items()
            if name in ours
        ),
    )
    for owner in fleet.owners.values():
        owner.begin()
    reach("adopt.all")
    fleet.rolls.step()
    fleet.publish_routes(force=True)
    fleet.save_quietly()
    reach("adopt.saved")


async def _take_up_one(
    owner: ReplicaController, found: FoundStart | None, record: store.ReplicaRecord | None
) -> None:
    saved = record.replica() if record is not None else None
    if found is None:
        owner.resume(saved)
    elif not await owner.adopt(found, saved, record.drains_until if record is not None else None):
        owner.resume(saved, found.note.generation)


def _let_go(fleet: Fleet, saved: store.FleetRecord, placed: Collection[str]) -> dict[str, Wanted]:
    """What an earlier daemon had let go, by replica; what cannot be read any more is a stray.

    :param placed: replicas that have a place.
    """
    found: dict[str, Wanted] = {}
    for replica, each in saved.let_go.items():
        try:
            if replica not in placed:
                found[replica] = applying.wanted_of(fleet, each)
        except GpuserveError as error:
            log.error("%s was let go, and its profile is not valid any more: %s", replica, error.message)  # noqa: TRY400
    return found


async def _take_up_leaving(
    fleet: Fleet,
    wanted: Wanted,
    found: FoundStart,
    record: store.ReplicaRecord | None,
    inventory: Sequence[Gpu],
) -> None:
    """Go on letting one go. Where nothing of it was ever started there is nothing to go on with."""
    profile = wanted.solved.applied(wanted.profile) if wanted.solved is not None else wanted.profile
    runs_on = found.note.gpu_uuids
    assignment = Assignment(found.note.replica, profile, _indexes(inventory, runs_on), runs_on)
    owner = ReplicaController(assignment, fleet)
    if record is not None:
        owner.restore(record.replica())
    fleet.owners[owner.id], fleet.let_go[owner.id] = owner, wanted
    saved = record.replica() if record is not None else None
    if not await owner.adopt(found, saved, record.drains_until if record is not None else None):
        del fleet.owners[owner.id], fleet.let_go[owner.id]
    elif owner.r.goal is not Goal.STOP:
        owner.post(EventKind.STOP)  # its owner had not read the order


def _indexes(inventory: Sequence[Gpu], uuids: Sequence[str]) -> tuple[int, ...]:
    indexes = {gpu.uuid: gpu.index for gpu in inventory}
    return tuple(indexes[uuid] for uuid in uuids if uuid in indexes)


def _discard_unfinished(fleet: Fleet) -> None:
    """Writes that the end of an earlier daemon broke off."""
    logs = fleet.roots.log / "replicas"
    for folder in (fleet.roots.state, fleet.roots.run, *(logs.iterdir() if logs.is_dir() else ())):
        statefile.discard_unfinished(folder)


def _owner(
    fleet: Fleet, assignment: Assignment, runs_on: tuple[str, ...] | None, inventory: Sequence[Gpu]
) -> ReplicaController:
    """One replica. One that runs on a GPU that was set aside under it stays there until it is started anew."""
    if runs_on is None or runs_on == assignment.gpu_uuids:
        return ReplicaController(assignment, fleet)
    there = replace(assignment, gpu_indexes=_indexes(inventory, runs_on), gpu_uuids=runs_on)
    owner = ReplicaController(there, fleet)
    owner.assign(assignment)
    return owner


async def _take_up_rolls(
    fleet: Fleet, saved: store.FleetRecord, held: dict[str, tuple[str, ...]], running: dict[str, int]
) -> None:
    """Rolling changes go on where they were. What cannot be placed any more cannot be gone back to."""
    target = {name: owner.assignment for name, owner in fleet.owners.items()}
    read = {each.id for each in saved.replicas if each.goal in {Goal.REPLACE, Goal.STOP}}
    for record in saved.rolls:
        if record.profile not in fleet.wanted:
            continue
        former: dict[str, Assignment] = {}
        wanted = None
        try:
            if record.former is not None:
                wanted = applying.wanted_of(fleet, record.former)
                everything = {**fleet.wanted, record.profile: wanted}
                inventory = await applying.inventory_of(fleet, everything)
                placed = arrange(everything, inventory, held, quarantined=fleet.quarantine.blocked())
                former = {each.replica: each for each in placed.assignments}
        except GpuserveError as error:
            log.error("%s: cannot be rolled back any more: %s", record.profile, error.message)  # noqa: TRY400
        fleet.rolls.resume(record, target, former, wanted, running, read)


def _wanted(fleet: Fleet, saved: store.FleetRecord) -> dict[str, Wanted]:
    found: dict[str, Wanted] = {}
    for each in saved.wanted:
        try:
            found[each.name] = applying.wanted_of(fleet, each)
        except GpuserveError as error:
            fleet.degraded = f"profile {each.name} is not valid any more: {error.message}"
            log.error("%s", fleet.degraded)  # noqa: TRY400 - the sentence says it all
    return found
