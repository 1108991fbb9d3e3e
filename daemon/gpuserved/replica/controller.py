"""The one task that owns a replica. Events come in through a queue, `core.replica.step` decides, effects go out here."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from dataclasses import replace
from functools import partial

from gpuserved.api.errors import GpuserveError
from gpuserved.core import events as ev
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.events import Effect, Event, EventKind, Timer
from gpuserved.core.load import Growth, Scrape
from gpuserved.core.recovery import adopted, resumed
from gpuserved.core.replica import step
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State
from gpuserved.engines.installed import Installed
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import settle
from gpuserved.host.logtail import last_lines
from gpuserved.host.shimclient import read_exit, read_identity
from gpuserved.host.sweep import sweep_start
from gpuserved.host.tasks import Tasks
from gpuserved.replica import diagnostics, launcher, start_files
from gpuserved.replica.health import Health, OomKills, Probed, Report, Situation, StartMoves, no_token
from gpuserved.replica.launcher import StartRequest
from gpuserved.replica.process import Ended, ReplicaProcess
from gpuserved.replica.services import Services
from gpuserved.replica.snapshot import ProcessSnapshot, ReplicaSnapshot
from gpuserved.replica.start_files import Start

log = logging.getLogger(__name__)

CAUSE_LINES = 400
"""Log lines looked at for the first cause: vLLM's traceback echoes through three processes are about a hundred."""
_ENDS = frozenset({EventKind.EXITED, EventKind.SPAWN_FAILED})


class ReplicaGone(NotAllowed):
    """The replica was asked for something, and its controller has ended."""


class ReplicaController:
    """Owns one replica, and is the only writer of what is known of it. Everybody else posts events and reads snapshots; a read never
    decides a mutation.
    """

    def __init__(self, assignment: Assignment, services: Services, r: Replica | None = None) -> None:
        self._services = services
        self._assignment = assignment
        self._next_assignment: Assignment | None = None
        self._r = r or Replica()
        self._process: ReplicaProcess | None = None
        self._address: str | None = None
        self._admit = False
        self._phase: str | None = None
        self._installed: Installed | None = None
        self._outdated: str | None = None
        self._health: Health | None = None
        self._oom_kills = OomKills()
        self._ended: Ended | None = None
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[State] | None]] = asyncio.Queue()
        self._asked: set[asyncio.Future[State]] = set()
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._starting: asyncio.Task[None] | None = None
        self._forks = False
        """The present start has had its turn: it cannot be called back any more."""
        self._tasks = Tasks(log)
        self._began = False
        self._gone = False

    # --- what others see

    @property
    def snapshot(self) -> ReplicaSnapshot:
        """All that is known of it now."""
        health = self._health
        return ReplicaSnapshot(
            id=self.id, r=self._r, assignment=self._assignment, next_assignment=self._next_assignment, process=self.process,
            address=self._address, admit=self._admit, phase=self._phase, installed=self._installed, outdated=self._outdated,
            figures=health.figures if health is not None else Scrape(),
            load=health.load if health is not None else Growth(), drains_until=self._drains_until,
        )  # fmt: skip

    @property
    def id(self) -> str:
        """`PROFILE-N`."""
        return self._assignment.replica

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
    def process(self) -> ProcessSnapshot | None:
        """The present process."""
        return self._process.snapshot if self._process is not None else None

    @property
    def installed(self) -> Installed | None:
        """What the present process was started from."""
        return self._installed

    @property
    def outdated(self) -> str | None:
        """How its environment differs from that by now, in words."""
        return self._outdated

    @property
    def _drains_until(self) -> float | None:
        """The deadline of its present drain by `time.monotonic`, which the loop's timers go by as well."""
        timer = self._timers.get(Timer.DRAIN)
        return timer.when() if timer is not None else None

    # --- what others ask of it

    def post(self, kind: EventKind, *, generation: int | None = None, cause: Cause | None = None) -> None:
        """Tell the controller something. Never blocks."""
        self._inbox.put_nowait((Event(kind, generation, cause), None))

    async def ask(self, kind: EventKind) -> State:
        """What an operator wants; returns the state it led to.

        :raises NotAllowed: the present state does not know it.
        :raises ReplicaGone: the controller has ended, or ends before it comes to this.
        """
        if self._gone:
            raise self._refusal()
        answer: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        self._inbox.put_nowait((Event(kind), answer))
        return await answer

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

    def waits(self, phase: str) -> None:
        """Its start waits for something that will come: that is no stall."""
        self._phase = phase
        self._start_moves()

    def environment_changed(self, how: str | None) -> None:
        """Its engine's environment differs from what it was started from; None: no longer."""
        self._outdated = how

    async def no_token(self, within_s: float) -> str | None:
        """Why its present process gives no token within this time; None: it gave one, or made steps meanwhile, busy with others'
        requests.
        """
        if self._address is None:
            return "it has no address"
        profile = self._assignment.profile
        return await no_token(self._address, self._services.engine(profile), profile, within_s)

    # --- its beginning and its end

    def restore(self, r: Replica, assignment: Assignment | None = None) -> None:
        """What a daemon finds of this replica when it starts. Before `begin`, and nowhere else."""
        assert not self._began, "only a replica that has not begun can be restored"
        self._r = r
        if assignment is not None:
            self._assignment = assignment

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
        return max(start_files.generations(self._services.roots, self.id), default=0)

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            self.post(event.kind, generation=event.generation, cause=event.cause)

    async def adopt(self, found: Start, saved: Replica | None, drains_until: float | None) -> bool:
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
        process = self._hold(found)
        self._admit = self._r.state is State.READY
        self._watch()
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

    def begin(self) -> None:
        """Act on what is posted from now on."""
        self._began = True
        task = self._tasks.start(self._run(), f"controller of {self.id}")
        task.add_done_callback(lambda _task: self._leave())

    async def detach(self) -> None:
        """End this controller; the replica goes on and can be adopted. Not to be awaited by what the controller itself calls."""
        self._leave()
        self._disarm_all()
        await self._tasks.close()
        if self._health is not None:
            await self._health.close()
        if self._process is not None:
            await self._process.detach()

    def _leave(self) -> None:
        """Whoever waits for an answer, or asks from now on, is told that there will be none."""
        self._gone = True
        for answer in tuple(self._asked):
            if not answer.done():
                answer.set_exception(self._refusal())

    def _refusal(self) -> ReplicaGone:
        return ReplicaGone("it has left the fleet")

    # --- events in

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

    def _context(self) -> Context:
        """What the next decision may look at."""
        profile = self._assignment.profile
        return Context(
            profile.limits, profile.restart, profile.health,
            last_of_model=self._services.last_of_model(self.id), moves=self._next_assignment is not None,
            jitter=random.uniform(-1, 1),
        )  # fmt: skip

    async def _handle(self, event: Event) -> None:
        before = self._r
        decided, effects = step(before, event, self._context())
        if event.kind in _ENDS and decided.state in {State.BACKOFF, State.FAILED} and decided is not before:
            self._crashed(decided)
            reach("exit.carded")
        self._r = decided
        if event.kind is EventKind.EXITED and event.generation == before.generation:
            await self._process_gone()
        if decided.state is not State.STARTING:
            self._services.gate.leave(self.id)
        if decided.state is State.READY and before.state is not State.READY:
            self._services.gate.warmed(launcher.model_key(self._assignment.profile))
        for effect in effects:
            try:
                await self._perform(effect)
            except Exception:  # the others are not less due for it: a timer among them tries again
                log.exception("%s: %s could not be performed", self.id, effect)
        # An order that changes nothing is told all the same: the fleet drops what is down already and no longer wanted.
        if decided != before or effects or event.kind is EventKind.STOP:
            if decided.state is not before.state:
                log.info("%s: %s -> %s %s", self.id, before.state.value, decided.state.value, decided.reason)
            self._services.changed(self.id, before.state.value)

    # --- how a start ends

    def _dying(self, generation: int, info: ExitInfo | None) -> None:
        cause = from_exit(info) if info is not None else Cause(CauseKind.SHIM_LOST, "its shim was killed")
        self.post(EventKind.DYING, generation=generation, cause=cause)

    def _over(self, generation: int, end: Ended) -> None:
        reach("exit.seen")
        self._ended = end
        cause: Cause | None = None
        try:
            cause = self._cause_of(end, generation)
        except Exception:  # an end whose cause cannot be read is an end
            log.exception("%s: the cause of its end could not be found", self.id)
            if end.info is not None:
                cause = from_exit(end.info)
        self.post(EventKind.EXITED, generation=generation, cause=cause)

    def _cause_of(self, end: Ended, generation: int) -> Cause:
        if end.shim_lost:
            return Cause(CauseKind.SHIM_LOST, "its shim was killed, and its processes with it")
        tail = last_lines(start_files.log_path(self._services.roots, self.id, generation), CAUSE_LINES)
        cause = self._services.engine(self._assignment.profile).cause(end.info, tail)
        killed = end.info is not None and end.info.signal == signal.SIGKILL
        if self._oom_kills.grown and (killed or cause.kind is CauseKind.ENGINE_DIED):
            return Cause(CauseKind.OUT_OF_MEMORY, f"OOM-killed: host memory ran out ({cause.message})")
        return cause

    def _crashed(self, decided: Replica) -> None:
        """A card of the end, while its figures are still there."""
        cause = decided.history.last_cause or decided.cause
        if cause is None or cause.kind is CauseKind.GPU_QUARANTINED:
            return  # nothing was started; the GPU's own events say why
        services, before = self._services, self.snapshot
        info = self._ended.info if self._ended is not None else None
        try:
            card = diagnostics.save_crash_card(
                services.roots, before, decided, cause, info, engine=services.engine(before.assignment.profile),
                oom_killed=self._oom_kills.grown, gpus=services.gpu_views(before.assignment.gpu_uuids), token=services.hf_token,
            )  # fmt: skip
            services.crashed(card)
        except Exception:  # a replica without a card is to be restarted all the same
            log.exception("%s: no crash card", self.id)

    async def _process_gone(self) -> None:
        """The end goes into the state before its folder goes: one of the two always tells the next daemon of it."""
        await self._unwatch()
        process, self._process = self._process, None
        self._address = None
        self._installed = self._outdated = None
        if process is None:
            return
        await process.detach()
        try:
            await self._services.record_intent()
        except Exception as error:  # its folder tells of it then, to a daemon that comes before the next save
            log.warning("%s: its end could not be saved: %s", self.id, error)
        reach("exit.recorded")
        process.forget()
        reach("exit.forgotten")

    # --- effects out

    async def _perform(self, effect: Effect) -> None:
        if isinstance(effect, ev.CancelTimers):
            self._disarm_all()
        elif isinstance(effect, ev.ArmTimer):
            self._arm(effect.timer, effect.delay_s)
        elif isinstance(effect, ev.SetRotation):
            self._admit = effect.admit
        elif isinstance(effect, ev.SaveEvidence):
            diagnostics.save_evidence(self._services.roots, self.snapshot, effect.cause)
        elif isinstance(effect, ev.Spawn):
            self._spawn(effect.generation)
        else:
            await self._end(effect)

    def _arm(self, timer: Timer, delay_s: float) -> None:
        self._disarm(timer)
        kind, generation = ev.TIMER_EVENTS[timer], self._r.generation
        post = partial(self.post, kind, generation=generation)
        self._timers[timer] = asyncio.get_running_loop().call_later(delay_s, post)

    def _disarm(self, timer: Timer) -> None:
        running = self._timers.pop(timer, None)
        if running is not None:
            running.cancel()

    def _disarm_all(self) -> None:
        for timer in tuple(self._timers):
            self._disarm(timer)

    async def _end(self, how: ev.Terminate | ev.KillTree) -> None:
        reach("stop.decided")
        if self._process is not None:
            await (self._process.kill() if isinstance(how, ev.KillTree) else self._process.terminate())
            reach("stop.signalled")
        elif self._starting is None:
            self.post(EventKind.EXITED, generation=self._r.generation)
        elif not self._forks:
            self._starting.cancel()  # it waits for its turn, and posts EXITED when it has given up
        # Else the fork cannot be called back: it ends by itself, and terminates what it has made.

    # --- a start

    def _spawn(self, generation: int) -> None:
        self._assignment, self._next_assignment = self._next_assignment or self._assignment, None
        self._ended = None
        self._forks = False
        task = self._tasks.start(self._start(generation), f"start {generation} of {self.id}")
        task.add_done_callback(partial(self._start_over, generation))
        self._starting = task

    async def _start(self, generation: int) -> None:
        """The outcome is posted, whatever it is: a start that ends without a word would be STARTING for ever, and hold the gate."""
        # The first replica of a model may load for an hour: who waits for it has not stalled.
        self._disarm(Timer.START_STALL)
        services, assignment = self._services, self._assignment
        try:
            await services.gate.enter(self.id, assignment.gpu_uuids, launcher.model_key(assignment.profile))
            await services.gpus_free(self.id, assignment.gpu_uuids)
            self._forks = True
            self._start_moves()
            reach("spawn.turn")
            await self._fork(StartRequest(
                assignment, generation, services.engine(assignment.profile), services.roots, services.gpu_locks,
                services.orphan_ttl_s, services.hf_token,
            ))  # fmt: skip
        except Exception as error:
            if not isinstance(error, (GpuserveError, OSError)):
                log.exception("%s: generation %d could not be started", self.id, generation)
            self.post(EventKind.SPAWN_FAILED, generation=generation, cause=launcher.cause_of(error))

    def _start_over(self, generation: int, task: asyncio.Task[None]) -> None:
        if self._starting is task:
            self._starting = None
        if task.cancelled() and not self._forks:
            self.post(EventKind.EXITED, generation=generation)  # told to stop before anything was started

    async def _fork(self, request: StartRequest) -> None:
        start = await launcher.start(request, self._services.record_intent)
        process = self._hold(start)
        try:
            await process.attach()
            reach("spawn.attached")
            self._watch()
            self._services.changed(self.id, self._r.state.value)
            if self._r.generation != request.generation or self._r.state is not State.STARTING:
                await process.terminate()  # the stop came while the fork was under way
        except Exception:
            await self._unwatch()
            await process.detach()
            self._process = self._address = self._installed = None
            await launcher.end_quietly(start.folder, start.note.nonce)
            raise
        pid = process.snapshot.pid
        log.info(
            "%s: generation %d started as PID %s at %s", self.id, request.generation, pid, start.note.address
        )

    def _hold(self, start: Start) -> ReplicaProcess:
        """From now on this is its present process."""
        generation = start.note.generation
        self._process = ReplicaProcess(
            start, partial(self._dying, generation), partial(self._over, generation)
        )
        self._address, self._installed = start.note.address, start.note.installed
        return self._process

    def _start_moves(self) -> None:
        """The start moves on: its stall deadline begins anew."""
        if self._r.state is State.STARTING:
            self._arm(Timer.START_STALL, self._assignment.profile.health.startup_stall_s)

    # --- health

    def _watch(self) -> None:
        """Probe the present process from now on."""
        assert self._address is not None
        profile, generation, roots = self._assignment.profile, self._r.generation, self._services.roots
        probed = Probed(
            self.id, generation, self._address, self._services.engine(profile), profile,
            start_files.log_path(roots, self.id, generation),
        )  # fmt: skip
        self._phase = None
        self._health = Health(probed, self._situation, self._heard, self._oom_kills)
        self._health.begin()

    async def _unwatch(self) -> None:
        self._phase = None
        health, self._health = self._health, None
        if health is not None:
            await health.close()

    def _situation(self) -> Situation:
        r, process = self._r, self.process
        return Situation(
            r.state, r.goal, self._assignment.profile.health,
            in_flight=self._services.in_flight(self.id, r.generation),
            pid=process.pid if process is not None else None,
            shim_pid=process.shim_pid if process is not None else None,
        )  # fmt: skip

    def _heard(self, report: Report) -> None:
        if isinstance(report, Event):
            self._tell(report)
        elif isinstance(report, StartMoves):
            self._start_moves()
        else:
            self._phase = report.phase
            if report.phase is not None:
                self._services.changed(self.id, self._r.state.value)
