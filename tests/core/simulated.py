"""A replica with a simulated process and clock: its owner's loop without the world around it.

The clock is virtual and the timers are the ones that the effects armed, so every run is the same on any machine.
"""

from __future__ import annotations

from collections.abc import Callable

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import (
    OPERATOR_EVENTS,
    TIMER_EVENTS,
    ArmTimer,
    CancelTimers,
    Effect,
    Event,
    EventKind,
    KillTree,
    SaveEvidence,
    SetRotation,
    Spawn,
    Terminate,
    Timer,
)
from gpuserved.core.replica import step
from gpuserved.core.state import Context, Replica, State

CRASH = Cause(CauseKind.ENGINE_DIED, "EngineCore died")


class Owner:
    """Performs the effects on a process that exists or does not."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.replica = Replica()
        self.now_s = 0.0
        self.timers: dict[Timer, tuple[float, int]] = {}
        self.process: int | None = None
        self.admitted = False
        self.spawns: list[float] = []
        self.seen: list[State] = [State.STOPPED]
        self._perform: dict[type, Callable[..., None]] = {
            Spawn: self._spawn, Terminate: lambda _: None, KillTree: lambda _: None, SetRotation: self._rotate,
            ArmTimer: self._arm, CancelTimers: lambda _: self.timers.clear(), SaveEvidence: self._save,
        }  # fmt: skip

    def tell(self, kind: EventKind, cause: Cause | None = None, generation: int | None = None) -> None:
        if generation is None and kind not in OPERATOR_EVENTS:
            generation = self.replica.generation
        self.replica, effects = step(self.replica, Event(kind, generation, cause), self.context)
        if self.replica.state is not self.seen[-1]:
            self.seen.append(self.replica.state)
        for effect in effects:
            self._perform[type(effect)](effect)

    def _spawn(self, effect: Spawn) -> None:
        assert self.process is None, "two processes of one replica"
        assert effect.generation == self.replica.generation
        self.process = effect.generation
        self.spawns.append(self.now_s)

    def _rotate(self, effect: SetRotation) -> None:
        self.admitted = effect.admit

    def _arm(self, effect: ArmTimer) -> None:
        self.timers[effect.timer] = (self.now_s + effect.delay_s, self.replica.generation)

    def _save(self, effect: Effect) -> None:
        assert self.process is not None, "evidence of nothing"

    def exit(self, cause: Cause = CRASH) -> None:
        """The whole tree is gone."""
        generation, self.process = self.process, None
        self.tell(EventKind.EXITED, cause, generation)

    def pass_time(self, seconds: float) -> None:
        """Let virtual time go by, firing what falls due."""
        end = self.now_s + seconds
        while due := [(at, timer, g) for timer, (at, g) in self.timers.items() if at <= end]:
            at, timer, generation = min(due)
            del self.timers[timer]
            self.now_s = max(self.now_s, at)
            self.tell(TIMER_EVENTS[timer], generation=generation)
        self.now_s = end
