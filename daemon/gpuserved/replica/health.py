"""Health of one start, from its fork to its end: readiness, liveness, progress, drain. Values come in, events go out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import Event, EventKind
from gpuserved.core.health import ProbeRow
from gpuserved.core.load import Growth, LoadWindow, Scrape
from gpuserved.core.profile import HealthPolicy, Profile
from gpuserved.core.progress import Progress, Verdict
from gpuserved.core.state import Goal, State
from gpuserved.engines.base import Engine
from gpuserved.host import procfs
from gpuserved.host.logtail import Tail
from gpuserved.host.tasks import Tasks
from gpuserved.replica.probe import Prober

log = logging.getLogger(__name__)

START_EVERY_S = 0.25
DRAIN_EVERY_S = 0.1
METRICS_EVERY = 2
"""Scrapes are twice as rare as health probes: the text is long."""
START_CPU_EVERY_S = 5.0
START_CPU_S = 0.1
"""CPU seconds within that time that count as progress of a start without log lines."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The start that is probed."""

    replica: str
    generation: int
    address: str
    engine: Engine
    profile: Profile
    log: Path


@dataclass(frozen=True, slots=True)
class Situation:
    """What probes go by that changes while the start lasts, as of now."""

    state: State
    goal: Goal
    policy: HealthPolicy
    in_flight: int | None
    """Requests that the routers have there; None: not known yet."""
    pid: int | None
    """Of the API process; None: not known yet."""
    shim_pid: int | None


@dataclass(frozen=True, slots=True)
class StartMoves:
    """The start does something: its stall deadline begins anew."""


@dataclass(frozen=True, slots=True)
class StartPhase:
    """What the start is doing now, in words; None: nothing any more."""

    phase: str | None


Report = Event | StartMoves | StartPhase


class OomKills:
    """Tells whether the kernel has killed a process for memory since the last count: in the cgroup of the present process where
    that can be read, which tells our kills from those of others on the host.
    """

    def __init__(self) -> None:
        self._cgroup: Path | None = None
        self._before = procfs.oom_kills()

    def count(self, pid: int | None) -> None:
        """Count anew, in the cgroup that `pid` is in now: an operator, or a container's runtime, may have moved it."""
        self._cgroup = procfs.memory_cgroup_of(pid) if pid else None
        self._before = self._now()

    @property
    def grown(self) -> bool | None:
        """True where there was one since the last count; None: the kernel does not say."""
        now = self._now()
        return None if now is None or self._before is None else now > self._before

    def _now(self) -> int | None:
        return procfs.oom_kills() if self._cgroup is None else procfs.oom_kills_in(self._cgroup)


class Health:
    """Probes one start until it is closed."""

    def __init__(
        self,
        probed: Probed,
        situation: Callable[[], Situation],
        tell: Callable[[Report], None],
        oom_kills: OomKills,
    ) -> None:
        """:param situation: asked before each probe and each judgement. :param tell: given what was found; must not block."""
        self._probed = probed
        self._situation = situation
        self._tell_of = tell
        self._oom_kills = oom_kills
        self._figures = Scrape()
        self._load = LoadWindow()
        self._phase: str | None = None
        self._row = ProbeRow()
        self._progress = Progress(moved_at=time.monotonic())
        self._prober: Prober | None = None
        self._tasks = Tasks(log)
        self._canary: asyncio.Task[None] | None = None
        self._rounds = 0
        self._cpu_at = 0.0
        self._cpu_s = 0.0

    @property
    def figures(self) -> Scrape:
        """Of the last scrape."""
        return self._figures

    @property
    def load(self) -> Growth:
        """Of the last minute."""
        return self._load.growth

    def begin(self) -> None:
        """Probe from now on."""
        self._tasks.start(self._run(), f"health of {self._probed.replica}")

    async def close(self) -> None:
        """Stop probing, and wait until the last probe's connections are closed."""
        await self._tasks.close()

    async def _run(self) -> None:
        probed = self._probed
        prober = Prober(probed.address, probed.engine, probed.profile)
        tail = Tail(probed.log)
        try:
            while True:
                now = self._situation()
                try:
                    if (
                        now.state.lives
                    ):  # in STOPPING a kill for memory may be what ended it; here it has hit somebody else
                        self._oom_kills.count(now.pid)
                    if now.state is State.STARTING:
                        await self._starting(prober, tail, now)
                    elif now.state.serves:
                        await self._serving(prober, now)
                except Exception:  # whatever it is: a replica that is not probed any more would hang unseen
                    log.exception("%s: a probe failed in an unexpected way", probed.replica)
                await asyncio.sleep(_pause_s(self._situation()))
        finally:
            await prober.close()

    def _tell(self, kind: EventKind, cause: Cause | None = None) -> None:
        self._tell_of(Event(kind, self._probed.generation, cause))

    # --- while it starts

    async def _starting(self, prober: Prober, tail: Tail, now: Situation) -> None:
        lines = tail.read()
        phases = [phase for phase in map(self._probed.engine.phase, lines) if phase]
        if phases and phases[-1] != self._phase:
            self._enter(phases[-1])
        if lines or self._used_cpu(now.shim_pid):
            self._tell_of(StartMoves())
        if await prober.healthy():
            if self._situation().goal is Goal.REPLACE and not await self._passes(prober):
                return
            self._enter(None)
            self._tell(EventKind.PROBE_UP)

    def _enter(self, phase: str | None) -> None:
        self._phase = phase
        self._tell_of(StartPhase(phase))

    async def _passes(self, prober: Prober) -> bool:
        """A start on trial: one token through the replica's own socket before a client's request goes there."""
        self._enter("canary")
        wrong = await prober.canary()
        if wrong is not None:
            self._tell(EventKind.CANARY_FAILED, Cause(CauseKind.CANARY_FAILED, wrong))
        return wrong is None

    def _used_cpu(self, shim_pid: int | None) -> bool:
        """Loading weights writes no line for minutes, but it does work."""
        now = time.monotonic()
        if shim_pid is None or now - self._cpu_at < START_CPU_EVERY_S:
            return False
        table = procfs.processes()
        used_s = procfs.cpu_s(procfs.tree(shim_pid, table), table)
        moved = used_s - self._cpu_s >= START_CPU_S
        self._cpu_at, self._cpu_s = now, used_s
        return moved

    # --- while it serves

    async def _serving(self, prober: Prober, now: Situation) -> None:
        if now.state is State.DRAINING and now.goal is not Goal.HOLD and now.in_flight == 0:
            self._tell(EventKind.DRAINED)
        self._rounds += 1
        if now.state is State.DRAINING and self._rounds % 10:
            return
        ok = await self._look(prober)
        due = self._progress.canary_due(time.monotonic(), after_s=now.policy.hang_rotation_s)
        if due and (self._canary is None or self._canary.done()):
            work = self._ask_the_silent(prober, now.policy.hang_rotation_s)
            self._canary = self._tasks.start(work, f"canary of {self._probed.replica}")
        self._judge(ok, dead=prober.engine_dead)

    async def _look(self, prober: Prober) -> bool:
        """One round of questions, asked at once: a silent replica must cost one timeout a round, not two."""
        if self._rounds % METRICS_EVERY and not self._row.failures:
            ok = await prober.healthy()
        else:
            ok, figures = await asyncio.gather(prober.healthy(), prober.figures())
            self._scraped(figures, self._situation().in_flight or 0, time.monotonic())
        self._row = self._row.seen(ok)
        return ok

    def _scraped(self, figures: Scrape | None, in_flight: int, now: float) -> None:
        self._figures = figures or Scrape()
        if figures is None:
            self._progress = self._progress.unanswered(in_flight, now)
            return
        self._load = self._load.observed(now, figures)
        self._progress = self._progress.observed(figures.steps, figures.running, in_flight, now)

    async def _ask_the_silent(self, prober: Prober, within_s: float) -> None:
        """A token from an engine that has long known nothing of the router's requests. Busy elsewhere, it answers late; dead, never."""
        wrong = await prober.canary(within_s)
        if wrong is not None:
            log.warning(
                "%s: requests are in flight, and the engine runs none; %s", self._probed.replica, wrong
            )
        self._progress = self._progress.canary(answered=wrong is None, now=time.monotonic())

    def _judge(self, ok: bool, *, dead: bool) -> None:
        situation, now = self._situation(), time.monotonic()
        policy = situation.policy
        verdict = self._progress.verdict(now, rotation_s=policy.hang_rotation_s, kill_s=policy.hang_timeout_s)
        if verdict is not Verdict.MOVING:
            hung = Cause(CauseKind.HUNG, self._progress.describe(now))
            self._tell(EventKind.HUNG if verdict is Verdict.HUNG else EventKind.STALLED, hung)
        elif self._row.down(policy.failure_threshold):
            why = ", the last with 503: the engine behind it is dead" if dead else ""
            message = f"unhealthy: {self._row.failures} liveness probes failed in a row{why}"
            self._tell(EventKind.PROBE_DOWN, Cause(CauseKind.UNHEALTHY, message))
        elif ok and situation.state is State.UNHEALTHY:
            self._tell(EventKind.PROBE_UP)


def _pause_s(now: Situation) -> float:
    if now.state is State.STARTING:
        return START_EVERY_S
    return DRAIN_EVERY_S if now.state is State.DRAINING else now.policy.interval_s


async def no_token(address: str, engine: Engine, profile: Profile, within_s: float) -> str | None:
    """Why a running engine gives no token within this time; None: it gave one, or made steps meanwhile, busy with others' requests."""
    prober = Prober(address, engine, profile)
    try:
        before = await prober.figures()
        wrong = await prober.canary(within_s)
        if wrong is None:
            return None
        after = await prober.figures()
    finally:
        await prober.close()
    stands = before is None or after is None or before.steps is None or before.steps == after.steps
    return wrong if stands else None
