"""The one task that owns a replica. Events come in through a queue, `core.replica.step` decides, effects go out here."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from gpuserved.core import events as ev
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.events import Effect, Event, EventKind, Timer
from gpuserved.core.recovery import adopted, resumed
from gpuserved.core.replica import step
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State
from gpuserved.engines.installed import Installed
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import settle
from gpuserved.host.logtail import last_lines
from gpuserved.host.shimclient import read_exit, read_identity
from gpuserved.host.sweep import sweep_start
from gpuserved.replica import crash, evidence, launcher, start_files
from gpuserved.replica.health import Watch
from gpuserved.replica.process import Ended, ReplicaProcess
from gpuserved.replica.services import Services
from gpuserved.replica.snapshot import ProcessSnapshot, ReplicaSnapshot
from gpuserved.replica.start_files import FoundStart

log = logging.getLogger(__name__)

CAUSE_LINES = 400
"""Log lines looked at for the first cause: vLLM's traceback echoes through three processes are about a hundred."""


ENDS = frozenset({EventKind.EXITED, EventKind.SPAWN_FAILED})


class ReplicaController:
    """Owns one replica, and is the only writer of what is known of it. Everybody else posts events and reads; a read never decides
    a mutation.
    """

    def __init__(self, assignment: Assignment, around: Services, r: Replica | None = None) -> None:
        self.around = around
        self.watch = Watch(self)
        self._assignment = assignment
        self._next_assignment: Assignment | None = None
        self._r = r or Replica()
        self._process: ReplicaProcess | None = None
        self._address: str | None = None
        self._admit = False
        self._installed: Installed | None = None
        self._outdated: str | None = None
        self._ended: Ended | None = None
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[State] | None]] = asyncio.Queue()
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._starting: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def r(self) -> Replica:
        """Its place in the lifecycle."""
        return self._r

    @property
    def assignment(self) -> Assignment:
        """What its present process runs, or its next one where none runs."""
        return self._assignment

    @property
    def next_assignment(self) -> Assignment | None:
        """What its next start runs, where that is something else."""
        return self._next_assignment

    @property
    def process(self) -> ReplicaProcess | None:
        """The present process."""
        return self._process

    @property
    def address(self) -> str | None:
        """Where the present process listens."""
        return self._address

    @property
    def admit(self) -> bool:
        """True while it is in rotation."""
        return self._admit

    @property
    def installed(self) -> Installed | None:
        """What the present process was started from."""
        return self._installed

    @property
    def outdated(self) -> str | None:
        """How its environment differs from that by now, in words."""
        return self._outdated

    @property
    def snapshot(self) -> ReplicaSnapshot:
        """All that is known of it now."""
        process, watch = self._process, self.watch
        return ReplicaSnapshot(
            id=self.id, r=self._r, assignment=self._assignment, next_assignment=self._next_assignment,
            process=None if process is None else ProcessSnapshot(
                pid=process.pid, shim_pid=process.shim_pid, shim_version=process.shim_version,
                shim_socket=process.socket, started_at=process.started_at, nonce=process.nonce, folder=process.folder,
            ),
            address=self._address, admit=self._admit, figures=watch.figures, load=watch.load.growth, phase=watch.phase,
            installed=self._installed, outdated=self._outdated, drains_until=self.drains_until,
        )  # fmt: skip

    async def no_token(self, within_s: float) -> str | None:
        """Why its present process gives no token within this time; None: it gave one, or made steps meanwhile, busy with others'
        requests.
        """
        return await self.watch.no_token(within_s)

    def restore(self, r: Replica, assignment: Assignment | None = None) -> None:
        """What a daemon finds of this replica when it starts. Before `begin`, and nowhere else."""
        assert self._task is None, "only a replica that has not begun can be restored"
        self._r = r
        if assignment is not None:
            self._assignment = assignment

    def started(self, address: str, installed: Installed | None) -> None:
        """What a start that is about to be made will be known by. For the launcher."""
        self._address, self._installed = address, installed

    def attached(self, process: ReplicaProcess) -> None:
        """The start has been made. For the launcher."""
        self._process = process

    def environment_changed(self, how: str | None) -> None:
        """Its engine's environment differs from what it was started from; None: no longer."""
        self._outdated = how

    def waits(self, phase: str) -> None:
        """Its start waits for something that will come: that is no stall."""
        self.watch.phase = phase
        self.progress_at_start()

    @property
    def id(self) -> str:
        """`PROFILE-N`."""
        return self._assignment.replica

    def begin(self) -> None:
        """Start the owner's task."""
        self._task = asyncio.ensure_future(self._run())

    def post(self, kind: EventKind, *, generation: int | None = None, cause: Cause | None = None) -> None:
        """Tell the owner something. Never blocks."""
        self._inbox.put_nowait((Event(kind, generation, cause), None))

    async def ask(self, kind: EventKind) -> State:
        """An operator's wish; returns the state it led to.

        :raises NotAllowed: the present state does not know it.
        """
        answer: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((Event(kind), answer))
        return await answer

    def create(self, *, start: bool) -> None:
        """A replica that did not exist: its numbering goes on after the logs of a namesake. Before `begin`.

        :param start: it is told to start; else whoever makes it gives the order.
        """
        r, order = resumed(None, self._latest_start())
        if start:
            self.restore(r)
            self._tell(order)
        else:
            self.restore(replace(r, goal=Goal.STOP))

    def resume(self, saved: Replica | None, tried: int = 0) -> None:
        """Nothing of this replica runs: go on from what was saved. Before `begin`.

        :param tried: generation of a start that was meant and never made.
        """
        r, order = resumed(saved, max(tried, self._latest_start()))
        self.restore(r)
        self._tell(order)

    def _latest_start(self) -> int:
        return max(start_files.generations(self.around.roots, self.id), default=0)

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            self.post(event.kind, generation=event.generation, cause=event.cause)

    async def adopt(self, found: FoundStart, saved: Replica | None, drains_until: float | None) -> bool:
        """Take over a start that was found. One that died meanwhile is reported with its exit status. Before `begin`.

        :param saved: what the daemon before this one saved of the replica.
        :param drains_until: the deadline of a drain that it began, by `time.monotonic`; None: it begins now.
        :returns: False where that daemon was killed before anything ran: nothing is left of that start.
        """
        note = found.note
        barred = await settle(found.folder)
        if barred is not None:
            ran = read_identity(found.folder) is not None or read_exit(found.folder) is not None
            if not ran:
                await sweep_start(found.folder, note.nonce)
            barred.release()
            if not ran:
                log.info("%s: generation %d was never started", self.id, note.generation)
                return False
        self.restore(adopted(saved, note.generation))
        dying, ended = self.callbacks(note.generation)
        process = ReplicaProcess(found.folder, note.nonce, dying, ended)
        process.shim_version = note.version
        self._process, self._address, self._installed = process, note.address, note.installed
        self._admit = self._r.state is State.READY
        self.watch.begin()
        self._arm_adopted(drains_until)
        alive = await process.attach()
        log.info("%s: %s generation %d", self.id, "adopted" if alive else "found ended:", note.generation)
        if alive and self._r.state is State.STOPPING:
            # Decided on before; whether it was carried out nobody knows. A process that was to be killed has no goal but to serve.
            await (process.kill() if self._r.goal is Goal.SERVE else process.terminate())
        reach("adopt.attached")
        return True

    def _arm_adopted(self, drains_until: float | None) -> None:
        """The timer that its state would have armed."""
        profile, rolling = self._assignment.profile, self._r.goal is Goal.REPLACE
        if self._r.state is State.READY:
            self._arm(Timer.STABLE, profile.restart.stable_s)
        elif self._r.state is State.STARTING:
            self._arm(Timer.START_STALL, profile.health.startup_stall_s)
        elif self._r.state is State.DRAINING and self._r.goal is not Goal.HOLD:
            whole_s = profile.limits.rolling_drain_s if rolling else profile.limits.drain_s
            rest_s = whole_s if drains_until is None else drains_until - time.monotonic()
            self._arm(Timer.DRAIN, min(max(rest_s, 0.0), whole_s))
        elif self._r.state is State.STOPPING:
            self._arm(Timer.KILL, profile.limits.term_grace_s)

    @property
    def drains_until(self) -> float | None:
        """The deadline of its present drain by `time.monotonic`, which the loop's timers go by as well."""
        timer = self._timers.get(Timer.DRAIN)
        return timer.when() if timer is not None else None

    def callbacks(self, generation: int) -> tuple[Callable[[ExitInfo | None], None], Callable[[Ended], None]]:
        """What a `ReplicaProcess` of this generation calls."""

        def dying(info: ExitInfo | None) -> None:
            cause = from_exit(info) if info is not None else Cause(CauseKind.SHIM_LOST, "its shim was killed")
            self.post(EventKind.DYING, generation=generation, cause=cause)

        def ended(end: Ended) -> None:
            reach("exit.seen")
            self._ended = end
            self.post(EventKind.EXITED, generation=generation, cause=self._cause_of(end, generation))

        return dying, ended

    def _cause_of(self, end: Ended, generation: int) -> Cause:
        if end.shim_lost:
            return Cause(CauseKind.SHIM_LOST, "its shim was killed, and its processes with it")
        tail = last_lines(start_files.log_path(self.around.roots, self.id, generation), CAUSE_LINES)
        cause = self.around.engine(self._assignment.profile).cause(end.info, tail)
        killed = end.info is not None and end.info.signal == signal.SIGKILL
        if self.watch.oom_killed() and (killed or cause.kind is CauseKind.ENGINE_DIED):
            return Cause(CauseKind.OUT_OF_MEMORY, f"OOM-killed: host memory ran out ({cause.message})")
        return cause

    async def _run(self) -> None:
        while True:
            event, answer = await self._inbox.get()
            try:
                await self._handle(event)
            except NotAllowed as error:
                if answer is not None and not answer.done():
                    answer.set_exception(error)
                continue
            except Exception:
                log.exception("%s: event %s could not be handled", self.id, event.kind.value)
            if answer is not None and not answer.done():
                answer.set_result(self._r.state)

    def context(self) -> Context:
        """What the next decision may look at."""
        profile = self._assignment.profile
        return Context(
            profile.limits, profile.restart, profile.health,
            last_of_model=self.around.last_of_model(self.id), moves=self._next_assignment is not None,
            jitter=random.uniform(-1, 1),
        )  # fmt: skip

    async def _handle(self, event: Event) -> None:
        before = self._r
        decided, effects = step(before, event, self.context())
        if event.kind in ENDS and decided.state in {State.BACKOFF, State.FAILED} and decided is not before:
            self._crashed(decided)
            reach("exit.carded")
        self._r = decided
        if event.kind is EventKind.EXITED and event.generation == before.generation:
            await self._process_gone()
        if decided.state is not State.STARTING:
            self.around.gate.leave(self.id)
        if decided.state is State.READY and before.state is not State.READY:
            self.around.gate.warmed(launcher.model_key(self._assignment.profile))
        for effect in effects:
            await self._perform(effect)
        # An order that changes nothing is told all the same: the fleet lets go of what is down already and no longer wanted.
        if decided != before or effects or event.kind is EventKind.STOP:
            if decided.state is not before.state:
                log.info("%s: %s -> %s %s", self.id, before.state.value, decided.state.value, decided.reason)
            self.around.changed(self.id, before.state.value)

    def _crashed(self, decided: Replica) -> None:
        """A card of the end, while its figures are still there."""
        cause = decided.history.last_cause or decided.cause
        if cause is None or cause.kind is CauseKind.GPU_QUARANTINED:
            return  # nothing was started; the GPU's own events say why
        info = self._ended.info if self._ended is not None else None
        started_at = self._process.started_at if self._process is not None else None
        try:
            card = crash.record(
                self, decided, cause, info, self.watch.figures, started_at,
                oom_killed=self.watch.oom_killed(),
            )  # fmt: skip
        except (OSError, ValueError):
            log.exception("%s: no crash card", self.id)
            return
        self.around.crashed(card)

    async def _process_gone(self) -> None:
        """The end goes into the state before its folder goes: one of the two always tells the next daemon of it."""
        self.watch.end()
        process, self._process = self._process, None
        self._address = None
        self._installed = self._outdated = None
        if process is None:
            return
        process.detach()
        try:
            await self.around.record_intent()
        except OSError as error:
            log.warning("%s: its end could not be saved: %s", self.id, error)
        reach("exit.recorded")
        process.forget()
        reach("exit.forgotten")

    async def _perform(self, effect: Effect) -> None:
        if isinstance(effect, ev.CancelTimers):
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
        elif isinstance(effect, ev.ArmTimer):
            self._arm(effect.timer, effect.delay_s)
        elif isinstance(effect, ev.SetRotation):
            self._admit = effect.admit
        elif isinstance(effect, ev.SaveEvidence):
            await evidence.save(self, effect.cause)
        elif isinstance(effect, ev.Spawn):
            self._assignment, self._next_assignment = self._next_assignment or self._assignment, None
            self._ended = None
            self._starting = asyncio.ensure_future(launcher.run(self, effect.generation))
        else:
            await self._end(kill=isinstance(effect, ev.KillTree))

    def _arm(self, timer: Timer, delay_s: float) -> None:
        self.disarm(timer)
        loop = asyncio.get_running_loop()
        kind, generation = ev.TIMER_EVENTS[timer], self._r.generation
        self._timers[timer] = loop.call_later(delay_s, lambda: self.post(kind, generation=generation))

    def disarm(self, timer: Timer) -> None:
        """Stop one timer, if it runs."""
        running = self._timers.pop(timer, None)
        if running is not None:
            running.cancel()

    def progress_at_start(self) -> None:
        """The start moves on: its stall deadline begins anew."""
        if self._r.state is State.STARTING:
            self._arm(Timer.START_STALL, self._assignment.profile.health.startup_stall_s)

    async def _end(self, *, kill: bool) -> None:
        reach("stop.decided")
        if self._process is not None:
            await (self._process.kill() if kill else self._process.terminate())
            reach("stop.signalled")
        elif self._starting is not None and not self._starting.done():
            # Waiting for its turn, or about to fork: `start.run` gives up at its next step and posts EXITED.
            self._starting.cancel()
        else:
            self.post(EventKind.EXITED, generation=self._r.generation)

    def assign(self, assignment: Assignment) -> None:
        """What the next start runs; settings that need no new process apply at once."""
        if (
            assignment.profile.runs_like(self._assignment.profile)
            and assignment.gpu_uuids == self._assignment.gpu_uuids
        ):
            self._assignment = assignment
            self._next_assignment = None
        else:
            self._next_assignment = assignment

    def moved_away(self) -> bool:
        """True where nothing of this replica runs and nothing is meant to."""
        return self._r.state is State.STOPPED and self._process is None and self._r.goal is Goal.STOP

    async def detach(self) -> None:
        """End this task; the replica goes on and can be adopted."""
        for timer in self._timers.values():
            timer.cancel()
        self.watch.end()
        for task in (self._task, self._starting):
            if task is not None:
                task.cancel()
        if self._process is not None:
            self._process.detach()
        await self.watch.closed()


_ending: set[asyncio.Task[None]] = set()


def detach_soon(owner: ReplicaController) -> None:
    """An owner that reports its own end cannot be awaited by itself; the loop keeps only weak references to tasks."""
    task = asyncio.ensure_future(owner.detach())
    _ending.add(task)
    task.add_done_callback(_ending.discard)
