"""The vocabulary of a replica's lifecycle: states, goals, and what a decision may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gpuserved.core.cause import Cause
from gpuserved.core.profile import HealthPolicy, Limits, RestartPolicy
from gpuserved.core.restart import RestartHistory


class State(str, Enum):
    """Where a replica is. Wire values."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    READY = "READY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"


class Goal(str, Enum):
    """What the replica is meant to become."""

    SERVE = "serve"
    HOLD = "hold"
    """Alive but out of rotation: an operator's drain."""
    RESTART = "restart"
    REPLACE = "replace"
    """A restart on trial, as a rolling change does it: the next process is admitted after a canary only."""
    STOP = "stop"


class NotAllowed(Exception):
    """The operator asked for something that the replica's state does not know."""


@dataclass(frozen=True)
class Replica:
    """A replica's place in its lifecycle."""

    state: State = State.STOPPED
    goal: Goal = Goal.STOP
    generation: int = 0
    """Counts spawns; carried by timers, probes and the shim."""
    history: RestartHistory = field(default_factory=RestartHistory)
    cause: Cause | None = None
    """Why it is not serving, or why it last stopped serving."""
    reason: str = ""
    """The line `status` shows."""


@dataclass(frozen=True)
class Context:
    """What a decision may look at besides the replica."""

    limits: Limits = field(default_factory=Limits)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)
    last_of_model: bool = False
    moves: bool = False
    """Its next process is to be another than the present one: other settings or other GPUs."""
    jitter: float = 0.0
    """A draw from [-1, 1]."""
