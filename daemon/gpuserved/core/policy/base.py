"""What every policy sees: the request's ties, the candidates, and which of them may take a request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefix_key import PrefixKey

SLOW_START_MIN = 0.1
"""Where a ramp begins (Envoy's `min_weight_percent`)."""


class Candidate(NamedTuple):
    """One replica as the choice sees it."""

    in_flight: int
    rotation: Rotation
    avoid: bool = False
    """It failed this very request before: chosen only where nothing else is left."""
    weight: float = 1.0
    """Its share against the others, above 0."""
    ramp: float = 1.0
    """Slow start: 0.1 for a replica that has just come, 1 for one that is warm."""
    identity: int = 0
    """64 bits that stand for the replica and outlive its restarts."""
    mirror: Mirror | None = None
    """What its prefix cache holds, as far as this router knows."""
    queued_tokens: float = 0.0
    """Prompt tokens sent there and not yet computed."""
    doubtful: bool = False
    """Ejected, but not proven dead: chosen only where nothing is in rotation (panic rule)."""


class Ties(Enum):
    """What of a request a policy wants to know."""

    NONE = "none"
    SESSION = "session"
    PREFIX = "prefix"


@dataclass(frozen=True)
class Ask:
    """What ties a request to a replica; None: nothing does, or nobody asked."""

    session: int | None = None
    """64 bits of a hash of the session's name."""
    prefix: PrefixKey | None = None


UNTIED = Ask()


class Policy(Protocol):
    """One model's way to choose. It may remember whose turn it is; counts and clocks are the caller's."""

    ties: Ties

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> int | None:
        """Index of the replica for this request; None: nothing is ready."""


def eligible(candidates: Sequence[Candidate]) -> list[int]:
    """Indexes that may take a request now."""
    any_in = any(c.rotation is Rotation.IN for c in candidates)
    usable = [
        i
        for i, c in enumerate(candidates)
        if c.rotation is Rotation.IN
        or (c.rotation is Rotation.PROBATION and (c.in_flight == 0 or not any_in))
    ]
    if not usable:
        usable = [i for i, c in enumerate(candidates) if c.doubtful]
    fresh = [i for i in usable if not candidates[i].avoid]
    return fresh or usable


def load(candidate: Candidate) -> float:
    """What one more request would make of it. A replica that has just come gets a first request like any other, and each
    further one counts as many.
    """
    return (candidate.in_flight / candidate.ramp + 1) / candidate.weight


def ramp(age_s: float, slow_start_s: float) -> float:
    """Slow start of a replica that has been in rotation for `age_s`: grows evenly from 0.1 to 1 over `slow_start_s`."""
    if age_s >= slow_start_s:
        return 1.0
    return max(SLOW_START_MIN, age_s / slow_start_s)
