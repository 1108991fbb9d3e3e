"""After a restart of the daemon: find what runs, take over what is ours, end what nobody wants."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.state import Goal, Replica, State
from gpuserved.fleet.store import ReplicaRecord
from gpuserved.host import stray
from gpuserved.host.failpoint import reach
from gpuserved.host.folderlock import settle
from gpuserved.host.shimclient import read_exit, read_identity
from gpuserved.replica import launcher
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.launcher import StartNote
from gpuserved.replica.process import ReplicaProcess

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A run folder of a start that was under way or running when the last daemon ended."""

    folder: Path
    note: StartNote


def scan(run: Path) -> tuple[list[Found], list[Path]]:
    """The starts in `run/r`, and folders that no note explains."""
    found: list[Found] = []
    unexplained: list[Path] = []
    folder = run / "r"
    for each in sorted(folder.iterdir()) if folder.is_dir() else []:
        note = launcher.read_note(each)
        if note is None:
            unexplained.append(each)
        else:
            found.append(Found(each, note))
    return found, unexplained


def match(
    found: list[Found], records: Mapping[str, ReplicaRecord], wanted: set[str]
) -> tuple[dict[str, Found], list[Found]]:
    """The start that each wanted replica continues, and the strays: unknown, unwanted, overtaken by a later start, or one
    whose end is in the state already, so that only its folder is left.
    """
    ours: dict[str, Found] = {}
    strays: list[Found] = []
    for each in sorted(found, key=lambda f: f.note.generation, reverse=True):
        record = records.get(each.note.replica)
        generation = each.note.generation
        known = record is None or generation > record.generation
        if record is not None and generation == record.generation:
            known = record.state not in _OVER
        if each.note.replica in wanted and each.note.replica not in ours and known:
            ours[each.note.replica] = each
        else:
            strays.append(each)
    return ours, strays


async def end_stray(folder: Path, nonce: str) -> None:
    """Kill one start that nobody wants, wait until its tree is gone, remove its folder."""
    reach("adopt.stray")
    await stray.end(folder, nonce)
    reach("adopt.ended")


def resumed(record: ReplicaRecord | None, generation: int) -> Replica:
    """Where an adopted replica stands: what was READY is taken to be READY, so that it never leaves rotation; what was on its
    way out goes on with that.
    """
    if record is None:
        return Replica(State.STARTING, Goal.SERVE, generation)
    r = replace(record.replica(), generation=generation)
    same = generation == record.generation
    if same and r.state in {State.READY, State.UNHEALTHY}:
        return replace(r, state=State.READY, goal=Goal.SERVE)
    if same and r.state in {State.DRAINING, State.STOPPING}:
        return r
    # A start on trial still owes its canary.
    goal = Goal.REPLACE if r.goal is Goal.REPLACE else Goal.SERVE
    return replace(r, state=State.STARTING, goal=goal)


async def take_over(owner: ReplicaController, found: Found, record: ReplicaRecord | None) -> bool:
    """Attach `owner` to a start that was found. One that died meanwhile is reported with its exit status.

    :returns: False where the daemon before this one was killed before anything ran: nothing is left of that start.
    """
    generation = found.note.generation
    barred = await settle(found.folder)
    if barred is not None:
        ran = read_identity(found.folder) is not None or read_exit(found.folder) is not None
        if not ran:
            await stray.sweep(found.folder, found.note.nonce)
        barred.release()
        if not ran:
            log.info("%s: generation %d was never started", owner.id, generation)
            return False
    owner.restore(resumed(record, generation))
    dying, ended = owner.callbacks(generation)
    process = ReplicaProcess(found.folder, found.note.nonce, dying, ended)
    process.shim_version = found.note.version
    owner.adopt(
        process, found.note.address, found.note.installed, record.drains_until if record is not None else None
    )
    alive = await process.attach()
    log.info("%s: %s generation %d", owner.id, "adopted" if alive else "found ended:", generation)
    if alive and owner.r.state is State.STOPPING:
        # Decided on before; whether it was carried out nobody knows. A process that was to be killed has no goal but to serve.
        await (process.kill() if owner.r.goal is Goal.SERVE else process.terminate())
    reach("adopt.attached")
    return True


def resume_without_process(owner: ReplicaController, record: ReplicaRecord | None, tried: int = 0) -> None:
    """Nothing of this replica runs: go on from what was saved.

    The state is saved again before the owner reads what is posted here, and this daemon may end in between: what is left in
    `owner.r` must lead to the same order once more.

    :param tried: generation of a start that was meant and never made.
    """
    # The generation goes on counting: logs of earlier starts exist under their numbers.
    past = [tried, *launcher.generations(owner.around.roots, owner.id)]
    if record is None:
        owner.forgive_generation(max(past))
        owner.is_to_run()
        owner.post(EventKind.START)
        return
    r = record.replica()
    r = replace(r, generation=max(r.generation, *past))
    if r.goal is Goal.REPLACE:
        owner.restore(replace(r, state=State.BACKOFF))
        owner.post(EventKind.REPLACE)
    elif r.state is State.STOPPED and r.goal is Goal.SERVE:
        owner.restore(r)
        owner.post(EventKind.START)  # the order was saved, and not read
    elif r.state is State.STOPPED or (r.goal is Goal.STOP and r.state is not State.FAILED):
        owner.restore(replace(r, state=State.STOPPED, goal=Goal.STOP))
    elif r.state in {State.FAILED, State.BACKOFF}:
        owner.restore(replace(r, state=State.BACKOFF, goal=Goal.SERVE))
        if r.state is State.FAILED and r.cause is not None and r.cause.kind in _WAITING:
            owner.restore(r)
        else:
            owner.post(EventKind.BACKOFF_ELAPSED, generation=r.generation)
    else:
        owner.restore(replace(r, state=State.BACKOFF, goal=Goal.SERVE))
        lost = r.state is not State.STARTING
        owner.post(EventKind.BACKOFF_ELAPSED if lost else EventKind.TAKE_UP, generation=r.generation)


_OVER = frozenset({State.STOPPED, State.BACKOFF, State.FAILED})
"""States that nothing runs in."""
_WAITING = frozenset(
    {CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.DOES_NOT_FIT, CauseKind.GPU_QUARANTINED}
)


def describe(found: Found) -> str:
    """For the log and the notice of a stray."""
    identity = read_identity(found.folder)
    pid = f", PID {identity.pid}" if identity else ""
    return f"{found.note.replica} generation {found.note.generation}{pid}"


def lost(message: str) -> Cause:
    """The cause of a replica whose shim and folder are gone."""
    return Cause(CauseKind.SHIM_LOST, message)
