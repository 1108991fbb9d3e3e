"""What a replica's controller may be told (events) and what a decision asks it to do (effects)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gpuserved.core.cause import Cause


class EventKind(str, Enum):
    """Everything that can happen to a replica. One column of the lifecycle table each."""

    # operator and planner
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    REPLACE = "replace"
    """From a rolling change: drain for long, and start what follows on trial."""
    WANTED = "wanted"
    """From the desired state: it is to serve, whatever it was about to do. What an operator drained stays drained."""
    TAKE_UP = "take_up"
    """From a new daemon: the one before it had decided on this start and not made it, so there is no loss to count."""
    # host
    SPAWN_FAILED = "spawn_failed"
    DYING = "dying"
    """The API process is gone; its tree is being swept."""
    EXITED = "exited"
    """The whole tree is gone."""
    # probes, after their thresholds
    PROBE_UP = "probe_up"
    PROBE_DOWN = "probe_down"
    STALLED = "stalled"
    """Busy without progress for `hang_rotation_s`."""
    HUNG = "hung"
    """The same for `hang_timeout_s`."""
    CANARY_FAILED = "canary_failed"
    """A start on trial is up, and one token could not be had from it."""
    DRAINED = "drained"
    # telemetry
    GPU_FAULT = "gpu_fault"
    """A GPU of it has failed, or the context it had there is broken."""
    # timers
    START_STALLED = "start_stalled"
    UNHEALTHY_TIMEOUT = "unhealthy_timeout"
    DRAIN_TIMEOUT = "drain_timeout"
    KILL_TIMEOUT = "kill_timeout"
    BACKOFF_ELAPSED = "backoff_elapsed"
    RETRY_ELAPSED = "retry_elapsed"
    STABLE = "stable"


VERB_EVENTS = frozenset(
    {EventKind.START, EventKind.STOP, EventKind.RESTART, EventKind.DRAIN, EventKind.UNDRAIN}
)
"""What an operator can ask of one replica."""
OPERATOR_EVENTS = VERB_EVENTS | {EventKind.REPLACE, EventKind.WANTED}
"""What an operator wants, said directly, through a rolling change, or through what is to run."""


@dataclass(frozen=True)
class Event:
    """One event.

    :param generation: the spawn it speaks of; None for the operator's. A stale one is dropped.
    :param cause: why, for the events that end a replica.
    """

    kind: EventKind
    generation: int | None = None
    cause: Cause | None = None


class Timer(str, Enum):
    """A replica's timers; at most one of each runs."""

    START_STALL = "start_stall"
    UNHEALTHY = "unhealthy"
    DRAIN = "drain"
    KILL = "kill"
    BACKOFF = "backoff"
    RETRY = "retry"
    STABLE = "stable"


TIMER_EVENTS: dict[Timer, EventKind] = {
    Timer.START_STALL: EventKind.START_STALLED,
    Timer.UNHEALTHY: EventKind.UNHEALTHY_TIMEOUT,
    Timer.DRAIN: EventKind.DRAIN_TIMEOUT,
    Timer.KILL: EventKind.KILL_TIMEOUT,
    Timer.BACKOFF: EventKind.BACKOFF_ELAPSED,
    Timer.RETRY: EventKind.RETRY_ELAPSED,
    Timer.STABLE: EventKind.STABLE,
}


@dataclass(frozen=True)
class Spawn:
    """Start the engine as `generation`."""

    generation: int


@dataclass(frozen=True)
class Terminate:
    """SIGTERM to the API process."""


@dataclass(frozen=True)
class KillTree:
    """SIGKILL to every process of the replica."""


@dataclass(frozen=True)
class SetRotation:
    """Tell the router whether new requests may go there."""

    admit: bool


@dataclass(frozen=True)
class ArmTimer:
    """Start or restart a timer."""

    timer: Timer
    delay_s: float


@dataclass(frozen=True)
class CancelTimers:
    """Stop all timers of the replica."""


@dataclass(frozen=True)
class SaveEvidence:
    """Before a kill: keep what explains it."""

    cause: Cause


Effect = Spawn | Terminate | KillTree | SetRotation | ArmTimer | CancelTimers | SaveEvidence
