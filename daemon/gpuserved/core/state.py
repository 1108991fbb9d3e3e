"""The vocabulary of a replica's lifecycle: states, goals, and what a decision may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gpuserved.core.cause import Cause
from gpuserved.core.profile import HealthPolicy, Limits, RestartPolicy
from gpuserved.core.restart import RestartHistory


class Process(Enum):
    """What becomes of a replica's process."""

    NONE = "none"
    LOADS = "loads"
    SERVES = "serves"
    """It computes what it has been given, in rotation or out of it."""
    ENDS = "ends"


class State(str, Enum):
    """Where a replica is. Wire values, each with what it means for the process: who asks for that, asks here."""

    process: Process

    def __new__(cls, name: str, process: Process) -> State:  # noqa: PYI034 - typing has Self since 3.11
        made = str.__new__(cls, name)
        made._value_ = name
        made.process = process
        return made

    STOPPED = "STOPPED", Process.NONE
    STARTING = "STARTING", Process.LOADS
    READY = "READY", Process.SERVES
    UNHEALTHY = "UNHEALTHY", Process.SERVES
    DRAINING = "DRAINING", Process.SERVES
    STOPPING = "STOPPING", Process.ENDS
    BACKOFF = "BACKOFF", Process.NONE
    FAILED = "FAILED", Process.NONE

    @property
    def has_process(self) -> bool:
        """True where something of it may run."""
        return self.process is not Process.NONE

    @property
    def lives(self) -> bool:
        """True where its process is meant to go on."""
        return self.process in {Process.LOADS, Process.SERVES}

    @property
    def serves(self) -> bool:
        """True where it may be computing answers."""
        return self.process is Process.SERVES


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
