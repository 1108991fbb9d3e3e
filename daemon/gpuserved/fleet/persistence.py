"""The durable state: what is wanted, and what each replica's past says. A cache of the truth, which is in the live shims."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.core.cause import Cause
from gpuserved.core.restart import RestartHistory
from gpuserved.core.rollout import Rollout
from gpuserved.core.state import Goal, Replica, State
from gpuserved.fleet.state import FleetState
from gpuserved.host import statefile
from gpuserved.host.tasks import Tasks
from gpuserved.planning.arrange import Solution, Wanted
from gpuserved.replica.snapshot import ReplicaSnapshot

log = logging.getLogger(__name__)

FILE_NAME = "fleet.json"
SCHEMA = 1
DELAY_S = 0.05
"""Changes within this time are saved together; a start is saved before it happens whatever the delay."""


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


def replica_record(replica: ReplicaSnapshot) -> ReplicaRecord:
    """The record of one replica."""
    r, assignment = replica.r, replica.assignment
    return ReplicaRecord(
        id=replica.id, profile=assignment.profile.name, gpu_uuids=assignment.gpu_uuids, state=r.state, goal=r.goal,
        generation=r.generation, reason=r.reason, cause=r.cause, history=r.history, drains_until=replica.drains_until,
    )  # fmt: skip


def wanted_record(name: str, wanted: Wanted) -> WantedRecord:
    """A profile as it is saved."""
    return WantedRecord(
        name=name, text=wanted.text, source=wanted.source, scaled=wanted.scaled, solved=wanted.solved
    )


def fleet_record(state: FleetState, rolls: list[RollRecord]) -> FleetRecord:
    """The fleet as the next daemon is to find it. While everything is being stopped that is not how it stands: what is wanted then
    is what was, and that its replicas stop is nothing to remember.
    """
    if state.after_shutdown:
        wanted = [wanted_record(name, each) for name, each in state.after_shutdown.items()]
        return FleetRecord(generation=state.generation, wanted=wanted, rolls=rolls)
    return FleetRecord(
        generation=state.generation,
        wanted=[wanted_record(name, each) for name, each in state.desired.items()],
        rolls=rolls,
        replicas=[replica_record(each) for each in state.snapshots().values()],
        let_go={name: wanted_record(each.profile.name, each) for name, each in state.removals.items()},
    )


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


class Saver:
    """Keeps a state file up to date. One write at a time, in a thread: a disk that is slow, or hangs, stops nothing else.

    A write holds the state as of its beginning, so that of several that wait only the newest is made.
    """

    def __init__(
        self, path: Path, record: Callable[[], msgspec.Struct], *, version: int = SCHEMA, what: str = "state"
    ) -> None:
        """:param record: what the next daemon is to find; called on the loop.
        :param version: of the file's schema.
        :param what: the content in words.
        """
        self._path = path
        self._record = record
        self._version = version
        self._what = what
        self._tasks = Tasks(log)
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="state"
        )  # no slow neighbour keeps a start from being recorded
        self._soon: asyncio.TimerHandle | None = None
        self._next: asyncio.Future[OSError | None] | None = None
        """The outcome of the write that begins next."""
        self._writing: asyncio.Task[None] | None = None
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the last write failed; None: it did not."""
        return self._problem

    def soon(self) -> None:
        """Save with what else changes in the next moment."""
        if self._soon is None and self._next is None:
            self._soon = asyncio.get_running_loop().call_later(DELAY_S, self._request)

    def begin(self) -> None:
        """Save at once; nobody waits for it."""
        self._request()

    async def now(self) -> None:
        """Have everything as of this call on disk before this returns.

        :raises OSError: it is not; the file before it is untouched.
        """
        error = await asyncio.shield(self._request())
        if error is not None:
            raise error

    async def quietly(self) -> None:
        """As `now`; where the disk refuses, `problem` and the log say so, and all goes on."""
        await asyncio.shield(self._request())

    async def flush(self) -> None:
        """Have on disk what has been asked for, as far as the disk takes it."""
        if self._soon is not None or self._next is not None or self._writing is not None:
            await self.quietly()

    async def close(self) -> None:
        """Write what waits, and write no more."""
        await self.flush()
        await self._tasks.close()
        self._thread.shutdown(wait=False)

    def _request(self) -> asyncio.Future[OSError | None]:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._writing is None:
            self._writing = self._tasks.start(self._write(), f"saving the {self._what}")
        return self._next

    async def _write(self) -> None:
        try:
            while (outcome := self._next) is not None:
                self._next = None
                try:
                    error = await self._write_once()
                except BaseException:
                    outcome.cancel()
                    raise
                self._problem = None if error is None else f"{self._what} not saved: {error.strerror}"
                outcome.set_result(error)
        finally:
            self._writing = None

    async def _write_once(self) -> OSError | None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._save, self._record())
        except OSError as error:
            log.error("the %s could not be saved: %s", self._what, error)  # noqa: TRY400 - the reason is in the error
            return error
        return None

    def _save(self, record: msgspec.Struct) -> None:
        data: dict[str, Any] = msgspec.to_builtins(record)
        statefile.save(self._path, data, version=self._version)
