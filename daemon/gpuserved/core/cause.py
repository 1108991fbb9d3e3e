"""Why a replica stopped: one word for programs, one sentence for people, and whether it can heal."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum


class Healing(str, Enum):
    """Whether the same start can succeed later without anybody changing anything."""

    MAYBE = "maybe"
    BY_ITSELF = "by_itself"
    ON_RELEASE = "on_release"
    """Once its GPU is released, or another one is free; the fleet starts it then."""
    NEVER = "never"


class CauseKind(str, Enum):
    """The classes of causes; wire values."""

    EXITED = "exited"
    KILLED = "killed"
    ENGINE_DIED = "engine_died"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    UNHEALTHY = "unhealthy"
    START_STALLED = "start_stalled"
    SPAWN_FAILED = "spawn_failed"
    SHIM_LOST = "shim_lost"
    BAD_FLAG = "bad_flag"
    MODEL_MISSING = "model_missing"
    DOES_NOT_FIT = "does_not_fit"
    PORT_IN_USE = "port_in_use"
    HUB_UNREACHABLE = "hub_unreachable"
    GPU_HELD = "gpu_held"
    CANARY_FAILED = "canary_failed"
    GPU_FAULT = "gpu_fault"
    GPU_QUARANTINED = "gpu_quarantined"


_BY_ITSELF = {CauseKind.PORT_IN_USE, CauseKind.HUB_UNREACHABLE, CauseKind.OUT_OF_MEMORY, CauseKind.GPU_HELD}
_NEVER = {CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.DOES_NOT_FIT}


@dataclass(frozen=True)
class Cause:
    """Why a replica is not serving."""

    kind: CauseKind
    message: str
    """One line, for an operator."""

    @property
    def healing(self) -> Healing:
        """Whether a later start can succeed."""
        if self.kind in _NEVER:
            return Healing.NEVER
        if self.kind is CauseKind.GPU_QUARANTINED:
            return Healing.ON_RELEASE
        return Healing.BY_ITSELF if self.kind in _BY_ITSELF else Healing.MAYBE


@dataclass(frozen=True)
class ExitInfo:
    """How the engine's API process ended, as the shim recorded it."""

    code: int | None
    """Exit code; None where a signal ended it."""
    signal: int | None
    at: float
    """Unix seconds."""

    def describe(self) -> str:
        """`exit code 0`, `killed by SIGKILL`."""
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return f"exit code {self.code}"


def from_exit(info: ExitInfo) -> Cause:
    """The cause when nothing but the exit status is known. Code 0 is a crash too: nobody asked for it."""
    if info.signal is not None:
        return Cause(CauseKind.KILLED, f"API process {info.describe()}")
    return Cause(CauseKind.EXITED, f"API process ended by itself ({info.describe()})")
