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
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.events import Effect, Event, EventKind, Timer
from gpuserved.core.replica import step
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State
from gpuserved.engines.installed import Installed
from gpuserved.host.failpoint import reach
from gpuserved.host.logtail import last_lines
from gpuserved.supervisor import crash, evidence, start
from gpuserved.supervisor.process import Ended, ReplicaProcess
from gpuserved.supervisor.surroundings import Assignment, Surroundings
from gpuserved.supervisor.watch import Watch

log = logging.getLogger(__name__)

CAUSE_LINES = 400
"""Log lines looked at for the first cause: vLLM's traceback echoes through three processes are about a hundred."""


ENDS = frozenset({EventKind.EXITED, EventKind.SPAWN_FAILED})


class Owner:
    """Owns one replica. Everybody else posts events and reads `r`; a read never decides a mutation."""

    def __init__(self, assignment: Assignment, around: Surroundings, r: Replica | None = None) -> None:
        self.assignment = assignment
        self.around = around
        self.r = r or Replica()
        self.process: ReplicaProcess | None = None
        self.address: str | None = None
        self.admit = False
        self.watch = Watch(self)
        self.next_assignment: Assignment | None = None
        self.installed: Installed | None = None
        """What the present process was started from."""
        self.outdated: str | None = None
        """How its environment differs from that by now, in words."""
        self._ended: Ended | None = None
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[State] | None]] = asyncio.Queue()
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._starting: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """`PROFILE-N`."""
        return self.assignment.replica

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

    def adopt(self, process: ReplicaProcess, address: str, drains_until: float | None = None) -> None:
        """Take over a start that was found running; `r` says what is known of it. Call before `begin`.

        :param drains_until: the deadline of a drain that an earlier daemon began; None: it begins now.
        """
        self.process = process
        self.address = address
        self.admit = self.r.state is State.READY
        self.watch.begin()
        profile, rolling = self.assignment.profile, self.r.goal is Goal.REPLACE
        if self.r.state is State.READY:
            self._arm(Timer.STABLE, profile.restart.stable_s)
        elif self.r.state is State.STARTING:
            self._arm(Timer.START_STALL, profile.health.startup_stall_s)
        elif self.r.state is State.DRAINING and self.r.goal is not Goal.HOLD:
            whole_s = profile.limits.rolling_drain_s if rolling else profile.limits.drain_s
            rest_s = whole_s if drains_until is None else drains_until - time.monotonic()
            self._arm(Timer.DRAIN, min(max(rest_s, 0.0), whole_s))
        elif self.r.state is State.STOPPING:
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
        tail = last_lines(start.log_path(self.around.roots, self.id, generation), CAUSE_LINES)
        cause = self.around.engine(self.assignment.profile).cause(end.info, tail)
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
                answer.set_result(self.r.state)

    def context(self) -> Context:
        """What the next decision may look at."""
        profile = self.assignment.profile
        return Context(
            profile.limits, profile.restart, profile.health,
            last_of_model=self.around.last_of_model(self.id), moves=self.next_assignment is not None,
            jitter=random.uniform(-1, 1),
        )  # fmt: skip

    async def _handle(self, event: Event) -> None:
        before = self.r
        decided, effects = step(before, event, self.context())
        if event.kind in ENDS and decided.state in {State.BACKOFF, State.FAILED} and decided is not before:
            self._crashed(decided)
            reach("exit.carded")
        self.r = decided
        if event.kind is EventKind.EXITED and event.generation == before.generation:
            self._process_gone()
        if decided.state is not State.STARTING:
            self.around.gate.leave(self.id)
        if decided.state is State.READY and before.state is not State.READY:
            self.around.gate.warmed(start.model_key(self.assignment.profile))
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
        started_at = self.process.started_at if self.process is not None else None
        try:
            card = crash.record(
                self, decided, cause, info, self.watch.figures, started_at,
                oom_killed=self.watch.oom_killed(),
            )  # fmt: skip
        except (OSError, ValueError):
            log.exception("%s: no crash card", self.id)
            return
        self.around.crashed(card)

    def _process_gone(self) -> None:
        """The end goes into the state before its folder goes: one of the two always tells the next daemon of it."""
        self.watch.end()
        process, self.process = self.process, None
        self.address = None
        self.installed = self.outdated = None
        if process is None:
            return
        process.detach()
        try:
            self.around.record_intent()
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
            self.admit = effect.admit
        elif isinstance(effect, ev.SaveEvidence):
            await evidence.save(self, effect.cause)
        elif isinstance(effect, ev.Spawn):
            self.assignment, self.next_assignment = self.next_assignment or self.assignment, None
            self._ended = None
            self._starting = asyncio.ensure_future(start.run(self, effect.generation))
        else:
            await self._end(kill=isinstance(effect, ev.KillTree))

    def _arm(self, timer: Timer, delay_s: float) -> None:
        self.disarm(timer)
        loop = asyncio.get_running_loop()
        kind, generation = ev.TIMER_EVENTS[timer], self.r.generation
        self._timers[timer] = loop.call_later(delay_s, lambda: self.post(kind, generation=generation))

    def disarm(self, timer: Timer) -> None:
        """Stop one timer, if it runs."""
        running = self._timers.pop(timer, None)
        if running is not None:
            running.cancel()

    def progress_at_start(self) -> None:
        """The start moves on: its stall deadline begins anew."""
        if self.r.state is State.STARTING:
            self._arm(Timer.START_STALL, self.assignment.profile.health.startup_stall_s)

    async def _end(self, *, kill: bool) -> None:
        reach("stop.decided")
        if self.process is not None:
            await (self.process.kill() if kill else self.process.terminate())
            reach("stop.signalled")
        elif self._starting is not None and not self._starting.done():
            # Waiting for its turn, or about to fork: `start.run` gives up at its next step and posts EXITED.
            self._starting.cancel()
        else:
            self.post(EventKind.EXITED, generation=self.r.generation)

    def assign(self, assignment: Assignment) -> None:
        """What the next start runs; settings that need no new process apply at once."""
        if (
            assignment.profile.runs_like(self.assignment.profile)
            and assignment.gpu_uuids == self.assignment.gpu_uuids
        ):
            self.assignment = assignment
            self.next_assignment = None
        else:
            self.next_assignment = assignment

    def moved_away(self) -> bool:
        """True where nothing of this replica runs and nothing is meant to."""
        return self.r.state is State.STOPPED and self.process is None and self.r.goal is Goal.STOP

    async def detach(self) -> None:
        """End this task; the replica goes on and can be adopted."""
        for timer in self._timers.values():
            timer.cancel()
        self.watch.end()
        for task in (self._task, self._starting):
            if task is not None:
                task.cancel()
        if self.process is not None:
            self.process.detach()
        await self.watch.closed()

    def is_to_run(self) -> None:
        """New, and not yet told to start: what is saved meanwhile must not look like a replica that somebody has stopped."""
        self.r = replace(self.r, goal=Goal.SERVE)

    def forgive_generation(self, generation: int) -> None:
        """Continue numbering after `generation`: a log of that number exists."""
        self.r = replace(self.r, generation=max(self.r.generation, generation))


_ending: set[asyncio.Task[None]] = set()


def detach_soon(owner: Owner) -> None:
    """An owner that reports its own end cannot be awaited by itself; the loop keeps only weak references to tasks."""
    task = asyncio.ensure_future(owner.detach())
    _ending.add(task)
    task.add_done_callback(_ending.discard)
