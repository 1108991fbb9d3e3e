"""Probes of one replica, from its fork to its end: readiness, liveness, progress, drain."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.health import ProbeRow
from gpuserved.core.load import LoadWindow
from gpuserved.core.progress import Progress, Verdict
from gpuserved.core.state import Goal, State
from gpuserved.host import procfs
from gpuserved.host.logtail import Tail
from gpuserved.replica import start_files
from gpuserved.replica.probe import EngineFigures, Prober

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

START_EVERY_S = 0.25
DRAIN_EVERY_S = 0.1
METRICS_EVERY = 2
"""Scrapes are twice as rare as health probes: the text is long."""
START_CPU_EVERY_S = 5.0
START_CPU_S = 0.1
"""CPU seconds within that time that count as progress of a start without log lines."""


_ALIVE = frozenset({State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING})
"""While one of these lasts, an OOM kill has hit somebody else. In STOPPING it may be what ended this replica."""


class Watch:
    """Owned by one `ReplicaController`; posts events to it."""

    def __init__(self, owner: ReplicaController) -> None:
        self._owner = owner
        self.figures = EngineFigures()
        self.load = LoadWindow()
        self.phase: str | None = None
        self._row = ProbeRow()
        self._engine_dead = False
        self._progress = Progress(moved_at=time.monotonic())
        self._task: asyncio.Task[None] | None = None
        self._canary: asyncio.Task[None] | None = None
        self._rounds = 0
        self._cpu_at = 0.0
        self._cpu_s = 0.0
        self._oom_cgroup: Path | None = None
        """Of the present process, where it can be read: it tells our kills from those of others on the host."""
        self._oom_kills = procfs.oom_kills()

    def oom_killed(self) -> bool | None:
        """True where the kernel has killed a process for memory since the last round of probes; None: it does not say."""
        now = self._kills()
        return None if now is None or self._oom_kills is None else now > self._oom_kills

    def _kills(self) -> int | None:
        return procfs.oom_kills() if self._oom_cgroup is None else procfs.oom_kills_in(self._oom_cgroup)

    def _count_kills(self) -> None:
        """Of the cgroup the process is in now: an operator, or a container's runtime, may have moved it."""
        process = self._owner.process
        self._oom_cgroup = (
            procfs.memory_cgroup_of(process.pid) if process is not None and process.pid else None
        )
        self._oom_kills = self._kills()

    def begin(self) -> None:
        """Probe the owner's present process until `end`."""
        self.end()
        self._row = ProbeRow()
        self._progress = Progress(moved_at=time.monotonic())
        self._task = asyncio.ensure_future(self._run(self._owner.r.generation))

    def end(self) -> None:
        """Stop probing."""
        if self._task is not None:
            self._task.cancel()
        self.figures = EngineFigures()
        self.load = LoadWindow()
        self.phase = None

    async def closed(self) -> None:
        """Wait until the last probe's connections are closed."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, generation: int) -> None:
        owner = self._owner
        assert owner.address is not None
        profile = owner.assignment.profile
        prober = Prober(owner.address, owner.around.engine(profile), profile)
        tail = Tail(start_files.log_path(owner.around.roots, owner.id, generation))
        try:
            while True:
                state = owner.r.state
                if state in _ALIVE:
                    self._count_kills()
                try:
                    if state is State.STARTING:
                        await self._starting(prober, tail, generation)
                    elif state in {State.READY, State.UNHEALTHY, State.DRAINING}:
                        await self._serving(prober, generation)
                except (OSError, ValueError):
                    log.exception("%s: a probe failed in an unexpected way", owner.id)
                await asyncio.sleep(self._pause_s(owner.r.state))
        finally:
            if self._canary is not None:
                self._canary.cancel()
            await prober.close()

    def _pause_s(self, state: State) -> float:
        if state is State.STARTING:
            return START_EVERY_S
        return DRAIN_EVERY_S if state is State.DRAINING else self._owner.assignment.profile.health.interval_s

    async def _starting(self, prober: Prober, tail: Tail, generation: int) -> None:
        owner = self._owner
        engine = owner.around.engine(owner.assignment.profile)
        lines = tail.read()
        phases = [phase for phase in map(engine.phase, lines) if phase]
        if phases and phases[-1] != self.phase:
            self.phase = phases[-1]
            owner.around.changed(owner.id, owner.r.state.value)
        if lines or self._used_cpu():
            owner.progress_at_start()
        if await prober.healthy():
            if owner.r.goal is Goal.REPLACE and not await self._passes(prober, generation):
                return
            self.phase = None
            owner.post(EventKind.PROBE_UP, generation=generation)

    async def _passes(self, prober: Prober, generation: int) -> bool:
        """A start on trial: one token through the replica's own socket before a client's request goes there."""
        owner = self._owner
        self.phase = "canary"
        owner.around.changed(owner.id, owner.r.state.value)
        wrong = await prober.canary(self._model())
        if wrong is not None:
            cause = Cause(CauseKind.CANARY_FAILED, wrong)
            owner.post(EventKind.CANARY_FAILED, generation=generation, cause=cause)
        return wrong is None

    def _model(self) -> str:
        """What the engine calls its model."""
        profile = self._owner.assignment.profile
        return self._owner.around.engine(profile).upstream_model(profile) or profile.served_name

    async def _ask_the_silent(self, prober: Prober) -> None:
        """A token from an engine that has long known nothing of the router's requests. Busy elsewhere, it answers late; dead, never."""
        wrong = await prober.canary(self._model(), self._owner.assignment.profile.health.hang_rotation_s)
        if wrong is not None:
            log.warning("%s: requests are in flight, and the engine runs none; %s", self._owner.id, wrong)
        self._progress = self._progress.canary(answered=wrong is None, now=time.monotonic())

    async def no_token(self, within_s: float) -> str | None:
        """Why the present process gives no token; None: it gave one, or made steps meanwhile, busy with others' requests."""
        owner, profile = self._owner, self._owner.assignment.profile
        if owner.address is None:
            return "it has no address"
        prober = Prober(owner.address, owner.around.engine(profile), profile)
        try:
            before = await prober.figures()
            wrong = await prober.canary(self._model(), within_s)
            if wrong is None:
                return None
            after = await prober.figures()
        finally:
            await prober.close()
        stands = before is None or after is None or before.steps is None or before.steps == after.steps
        return wrong if stands else None

    def _used_cpu(self) -> bool:
        """Loading weights writes no line for minutes, but it does work."""
        process, now = self._owner.process, time.monotonic()
        if process is None or process.shim_pid is None or now - self._cpu_at < START_CPU_EVERY_S:
            return False
        table = procfs.processes()
        ticks = sum(table[pid].cpu_ticks for pid in procfs.tree(process.shim_pid, table) if pid in table)
        used = ticks / procfs.TICKS_PER_S
        moved = used - self._cpu_s >= START_CPU_S
        self._cpu_at, self._cpu_s = now, used
        return moved

    async def _serving(self, prober: Prober, generation: int) -> None:
        owner, health = self._owner, self._owner.assignment.profile.health
        if owner.r.state is State.DRAINING and owner.r.goal is not Goal.HOLD:
            self._drained(generation)
        self._rounds += 1
        if owner.r.state is State.DRAINING and self._rounds % 10:
            return
        ok = await self._look(prober, generation)
        now = time.monotonic()
        if self._progress.canary_due(now, after_s=health.hang_rotation_s) and (
            self._canary is None or self._canary.done()
        ):
            self._canary = asyncio.ensure_future(self._ask_the_silent(prober))
        verdict = self._progress.verdict(now, rotation_s=health.hang_rotation_s, kill_s=health.hang_timeout_s)
        self._judge(ok, verdict, generation)

    async def _look(self, prober: Prober, generation: int) -> bool:
        """One round of questions, asked at once: a silent replica must cost one timeout a round, not two."""
        if self._rounds % METRICS_EVERY and not self._row.failures:
            ok = await prober.healthy()
        else:
            ok, figures = await asyncio.gather(prober.healthy(), prober.figures())
            in_flight = self._owner.around.in_flight(self._owner.id, generation) or 0
            self._scraped(figures, in_flight, time.monotonic())
        self._row = self._row.seen(ok)
        self._engine_dead = prober.engine_dead
        return ok

    def _scraped(self, figures: EngineFigures | None, in_flight: int, now: float) -> None:
        self.figures = figures or EngineFigures()
        if figures is None:
            self._progress = self._progress.unanswered(in_flight, now)
            return
        self.load = self.load.observed(now, figures.counters)
        self._progress = self._progress.observed(figures.steps, figures.running, in_flight, now)

    def _judge(self, ok: bool, verdict: Verdict, generation: int) -> None:
        owner, health = self._owner, self._owner.assignment.profile.health
        hung = Cause(CauseKind.HUNG, self._progress.describe(time.monotonic()))
        if verdict is Verdict.HUNG:
            owner.post(EventKind.HUNG, generation=generation, cause=hung)
        elif verdict is Verdict.STALLED:
            owner.post(EventKind.STALLED, generation=generation, cause=hung)
        elif self._row.down(health.failure_threshold):
            why = ", the last with 503: the engine behind it is dead" if self._engine_dead else ""
            message = f"unhealthy: {self._row.failures} liveness probes failed in a row{why}"
            cause = Cause(CauseKind.UNHEALTHY, message)
            owner.post(EventKind.PROBE_DOWN, generation=generation, cause=cause)
        elif ok and owner.r.state is State.UNHEALTHY:
            owner.post(EventKind.PROBE_UP, generation=generation)

    def _drained(self, generation: int) -> None:
        if self._owner.around.in_flight(self._owner.id, generation) == 0:
            self._owner.post(EventKind.DRAINED, generation=generation)
