"""Hang detection by progress: an engine with running requests whose step counter stands still.

A saturated engine is slow but its counter moves; a hung one answers /health and does nothing (vLLM checks only a flag there).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Verdict(str, Enum):
    """What the observations so far allow to say."""

    MOVING = "moving"
    STALLED = "stalled"
    HUNG = "hung"


@dataclass(frozen=True)
class Progress:
    """What was last seen of one replica's engine. Times are monotonic seconds."""

    steps: float | None = None
    """The engine's step counter; None: never read."""
    busy: bool = False
    moved_at: float = 0.0
    """When the counter last moved, or the engine was last seen idle."""
    silent_since: float | None = None
    """Since when the router has had requests there of which the engine knows nothing; None: it has none such."""
    suspect: bool = False
    """A canary failed in that silence."""

    def observed(self, steps: float | None, running: float | None, in_flight: int, now: float) -> Progress:
        """The state after one scrape that was answered.

        :param steps: the step counter, None where the answer had none.
        :param running: requests in the engine's batch, None where the answer did not say.
        :param in_flight: the router's own count for this replica.

        An answer without these figures says nothing for or against the engine, which is then not judged by its progress: what
        cannot be known must not kill. An engine that answers with running = 0 is not hung (video decoding, grammar compilation):
        only a canary may say so, and `canary_due` says when one is worth asking.
        """
        if steps is None or running is None:
            return Progress(self.steps, False, now)
        moved = self.steps is None or steps != self.steps
        if running <= 0 and not moved and in_flight > 0:
            since = now if self.silent_since is None else self.silent_since
            return Progress(steps, False, now, since, self.suspect)
        if running <= 0 or moved:
            return Progress(steps, running > 0, now)
        return Progress(steps, True, self.moved_at if self.busy else now)

    def unanswered(self, in_flight: int, now: float) -> Progress:
        """The state after a scrape that had no answer, which is no sign of life.

        While the router has requests there, the clock of a busy engine goes on from the last good scrape, and that of an engine
        idle until then starts now. Without requests nothing is owed, and the liveness probe decides alone.
        """
        if self.steps is None:
            return replace(self, moved_at=now)
        return self if self.busy and in_flight > 0 else replace(self, busy=in_flight > 0, moved_at=now)

    def canary_due(self, now: float, *, after_s: float) -> bool:
        """Has the engine known nothing of the router's requests for so long that it should be asked for a token?"""
        return self.silent_since is not None and now - self.silent_since >= after_s

    def canary(self, *, answered: bool, now: float) -> Progress:
        """The state after a canary that was due: an answer starts the silence anew, a failure makes it suspect."""
        if self.silent_since is None:
            return self
        return replace(self, suspect=not answered, silent_since=now if answered else self.silent_since)

    def describe(self, now: float) -> str:
        """What is wrong, for an operator, where `verdict` is not MOVING."""
        if self.suspect and self.silent_since is not None:
            return f"hung: requests in flight, none running for {now - self.silent_since:.0f} s, and a canary got no token"
        return f"hung: requests running, and no engine step for {now - self.moved_at:.0f} s"

    def verdict(self, now: float, *, rotation_s: float, kill_s: float) -> Verdict:
        """STALLED after `rotation_s` without a step while busy, or silent with a failed canary; HUNG after `kill_s`."""
        if self.suspect and self.silent_since is not None:
            flat = now - self.silent_since
        elif self.busy:
            flat = now - self.moved_at
        else:
            return Verdict.MOVING
        if flat >= kill_s:
            return Verdict.HUNG
        return Verdict.STALLED if flat >= rotation_s else Verdict.MOVING
