"""What a new daemon finds: desired profiles from disk, live replicas from their shims, rolling changes where they were.

What is ours goes on, what nobody wants is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import Roots
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.placement import Gpu
from gpuserved.core.recovery import continues
from gpuserved.core.state import Goal
from gpuserved.fleet.arranger import Arranger
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.persistence import FILE_NAME, FleetRecord, ReplicaRecord, RollRecord, WantedRecord, load
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.rollout import Rollouts
from gpuserved.fleet.state import FleetState
from gpuserved.host import statefile
from gpuserved.host.failpoint import reach
from gpuserved.host.sweep import end_start
from gpuserved.planning.arrange import Arranged, Wanted, arrange, lacks_gpu
from gpuserved.replica import start_files
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.start_files import Start

log = logging.getLogger(__name__)


class Recovery:
    """Restores one fleet, once, before anything else happens to it."""

    def __init__(
        self,
        roots: Roots,
        state: FleetState,
        arranger: Arranger,
        inventory: GpuInventory,
        quarantine: Quarantine,
        rollouts: Rollouts,
        controller: Callable[[Assignment], ReplicaController],
    ) -> None:
        """:param controller: makes the controller of a replica."""
        self._roots = roots
        self._state = state
        self._arranger = arranger
        self._inventory = inventory
        self._quarantine = quarantine
        self._rollouts = rollouts
        self._controller = controller

    async def run(self) -> str | None:
        """Restore what there was.

        :returns: what of it could not be, in words; None: nothing.
        :raises Invalid: a newer version has written it; nothing was touched.
        """
        _discard_unfinished(self._roots)
        saved, problem = load(self._roots.state / FILE_NAME)
        reach("adopt.read")
        self._quarantine.load()
        wanted, invalid = self._wanted(saved.wanted)
        for said in filter(None, (problem, *invalid)):
            log.error("%s", said)
        self._state.restore(saved.generation, wanted)
        self._inventory.simulate([each.profile for each in wanted.values()])
        found, unexplained = start_files.scan(self._roots.run)
        reach("adopt.scanned")
        await self._restore(saved, found, unexplained)
        reach("adopt.all")
        return invalid[-1] if invalid else problem

    def _wanted(self, records: Sequence[WantedRecord]) -> tuple[dict[str, Wanted], list[str]]:
        """The profiles that can still be read, and what is wrong with the others."""
        found: dict[str, Wanted] = {}
        invalid: list[str] = []
        for each in records:
            try:
                found[each.name] = self._arranger.saved(each)
            except GpuserveError as error:
                invalid.append(f"profile {each.name} is not valid any more: {error.message}")
        return found, invalid

    async def _restore(self, saved: FleetRecord, found: list[Start], unexplained: Sequence[Path]) -> None:
        wanted = self._state.desired
        records = {record.id: record for record in saved.replicas}
        by_age = sorted(found, key=lambda each: each.note.generation)
        notes = {each.note.replica: each.note.gpu_uuids for each in by_age}
        held = {name: record.gpu_uuids for name, record in records.items()} | notes
        there = await self._arranger.inventory(wanted)
        used = (uuids for name, uuids in held.items() if name.rpartition("-")[0] in wanted)
        self._quarantine.set_aside_missing(there, {uuid for uuids in used for uuid in uuids})
        inventory = self._quarantine.with_missing(there)
        arranged = self._arranged(records, notes, held, inventory)
        placed = {each.replica for each in arranged.assignments}
        removals = removals_that_go_on(self._arranger, saved, placed)
        ours, strays = match(found, records, placed | removals.keys())
        for assignment in arranged.assignments:
            self._place(assignment, notes.get(assignment.replica), records.get(assignment.replica), inventory)
        running = {name: record.generation for name, record in records.items()}
        running |= {name: each.note.generation for name, each in ours.items()}
        await self._go_on_rolling(saved, held, running)
        await _end_strays(strays, unexplained)
        # All at once: a shim that does not answer costs its own replica time, not the others.
        await asyncio.gather(
            *(_go_on(c, ours.get(name), records.get(name)) for name, c in self._state.replicas.items()),
            *(
                self._go_on_removing(each, ours[name], records.get(name), inventory)
                for name, each in removals.items()
                if name in ours
            ),
        )
        for controller in self._state.replicas.values():
            controller.begin()

    def _arranged(
        self,
        records: Mapping[str, ReplicaRecord],
        notes: Mapping[str, tuple[str, ...]],
        held: Mapping[str, tuple[str, ...]],
        inventory: Sequence[Gpu],
    ) -> Arranged:
        """Where every wanted replica is to be: where it was, if it can."""
        waiting = [
            name for name, record in records.items() if name not in notes and lacks_gpu(record.replica())
        ]
        blocked = self._quarantine.blocked()
        return arrange(self._state.desired, inventory, held, quarantined=blocked, waiting=waiting)

    def _place(
        self,
        assignment: Assignment,
        runs_on: tuple[str, ...] | None,
        record: ReplicaRecord | None,
        inventory: Sequence[Gpu],
    ) -> None:
        """One replica. One that runs on a GPU that was set aside under it stays there until it is started anew."""
        if runs_on is None or runs_on == assignment.gpu_uuids:
            controller = self._controller(assignment)
        else:
            there = replace(assignment, gpu_indexes=_indexes(inventory, runs_on), gpu_uuids=runs_on)
            controller = self._controller(there)
            controller.assign(assignment)
        if record is not None:
            # From the first moment as it was saved: whatever makes the fleet save again meanwhile must not forget it.
            controller.restore(record.replica())
        self._state.add(controller)

    async def _go_on_removing(
        self, wanted: Wanted, found: Start, record: ReplicaRecord | None, inventory: Sequence[Gpu]
    ) -> None:
        """Go on removing one. Where nothing of it was ever started there is nothing to go on with."""
        profile = wanted.solved.applied(wanted.profile) if wanted.solved is not None else wanted.profile
        runs_on = found.note.gpu_uuids
        controller = self._controller(
            Assignment(found.note.replica, profile, _indexes(inventory, runs_on), runs_on)
        )
        saved = record.replica() if record is not None else None
        if saved is not None:
            controller.restore(saved)
        self._state.add(controller)
        self._state.begin_removal(controller.id, wanted)
        if not await controller.adopt(found, saved, record.drains_until if record is not None else None):
            self._state.discard(controller.id)
        elif controller.r.goal is not Goal.STOP:
            controller.post(EventKind.STOP)  # it had not read the order

    async def _go_on_rolling(
        self, saved: FleetRecord, held: Mapping[str, tuple[str, ...]], running: Mapping[str, int]
    ) -> None:
        target = {name: controller.assignment for name, controller in self._state.replicas.items()}
        read = {each.id for each in saved.replicas if each.goal in {Goal.REPLACE, Goal.STOP}}
        for record in saved.rolls:
            if record.profile in self._state.desired:
                former, wanted = await self._former(record, held)
                self._rollouts.resume(record, target, former, wanted, running, read)

    async def _former(
        self, record: RollRecord, held: Mapping[str, tuple[str, ...]]
    ) -> tuple[dict[str, Assignment], Wanted | None]:
        """What a rolling change can be turned back to. What cannot be placed any more cannot be gone back to."""
        wanted: Wanted | None = None
        if record.former is None:
            return {}, None
        try:
            wanted = self._arranger.saved(record.former)
            everything = {**self._state.desired, record.profile: wanted}
            inventory = await self._arranger.inventory(everything)
            found = arrange(everything, inventory, held, quarantined=self._quarantine.blocked())
        except GpuserveError as error:
            log.error("%s: cannot be rolled back any more: %s", record.profile, error.message)  # noqa: TRY400
            return {}, wanted
        return {each.replica: each for each in found.assignments}, wanted


def match(
    found: Iterable[Start], records: Mapping[str, ReplicaRecord], wanted: Collection[str]
) -> tuple[dict[str, Start], list[Start]]:
    """The start that each wanted replica continues, and the strays: unknown, unwanted, overtaken by a later start, or one
    whose end is in the state already, so that only its folder is left.
    """
    ours: dict[str, Start] = {}
    strays: list[Start] = []
    for each in sorted(found, key=lambda start: start.note.generation, reverse=True):
        record = records.get(each.note.replica)
        known = continues(record.replica() if record is not None else None, each.note.generation)
        if each.note.replica in wanted and each.note.replica not in ours and known:
            ours[each.note.replica] = each
        else:
            strays.append(each)
    return ours, strays


def removals_that_go_on(arranger: Arranger, saved: FleetRecord, placed: Collection[str]) -> dict[str, Wanted]:
    """Replicas that were on their way out, with what was wanted before; what cannot be read any more is a stray.

    :param placed: replicas that have a place.
    """
    found: dict[str, Wanted] = {}
    for replica, each in saved.let_go.items():
        try:
            if replica not in placed:
                found[replica] = arranger.saved(each)
        except GpuserveError as error:
            said = "%s was being removed, and its profile is not valid any more: %s"
            log.error(said, replica, error.message)  # noqa: TRY400 - the sentence says it all
    return found


async def _go_on(controller: ReplicaController, found: Start | None, record: ReplicaRecord | None) -> None:
    saved = record.replica() if record is not None else None
    if found is None:
        controller.resume(saved)
    elif not await controller.adopt(found, saved, record.drains_until if record is not None else None):
        controller.resume(saved, found.note.generation)


async def _end_strays(strays: Sequence[Start], unexplained: Sequence[Path]) -> None:
    for each in strays:
        log.warning("ending a replica that nobody wants: %s", each.describe())
    ends: list[Awaitable[None]] = [_end_stray(each.folder, each.note.nonce) for each in strays]
    await asyncio.gather(*ends, *(_end_stray(folder, folder.name) for folder in unexplained))


async def _end_stray(folder: Path, nonce: str) -> None:
    """Kill one start that nobody wants, wait until its tree is gone, remove its folder."""
    reach("adopt.stray")
    await end_start(folder, nonce)
    reach("adopt.ended")


def _discard_unfinished(roots: Roots) -> None:
    """Writes that the end of an earlier daemon broke off."""
    logs = roots.log / "replicas"
    for folder in (roots.state, roots.run, *(logs.iterdir() if logs.is_dir() else ())):
        statefile.discard_unfinished(folder)


def _indexes(inventory: Sequence[Gpu], uuids: Sequence[str]) -> tuple[int, ...]:
    indexes = {gpu.uuid: gpu.index for gpu in inventory}
    return tuple(indexes[uuid] for uuid in uuids if uuid in indexes)
