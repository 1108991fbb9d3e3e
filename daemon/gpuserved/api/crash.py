"""The crash card: everything one needs to know of a start that ended by itself, in one piece."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SCHEMA = 1


class Traceback(msgspec.Struct, frozen=True, kw_only=True):
    """The first traceback that one process wrote; later ones are mostly its echo."""

    process: str
    """As the engine names it (`EngineCore`, `Worker_TP0`); empty: it wrote no name."""
    lines: Sequence[str]


class CrashFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own figures as of the last scrape before the end; None: not known."""

    running: float | None = None
    waiting: float | None = None
    kv_cache_pct: float | None = None
    steps: float | None = None


class CrashGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One of the replica's GPUs as of the last sample."""

    index: int
    uuid: str
    state: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None


class CrashCard(msgspec.Struct, frozen=True, kw_only=True):
    """One start that ended and was not asked to. Saved as GENERATION.crash.json beside the log of that start."""

    v: int = SCHEMA
    replica: str
    profile: str
    model: str
    engine: str
    generation: int
    at: float
    """Unix seconds of the end, as the shim recorded it."""
    started_at: float | None = None
    exit_code: int | None = None
    """Of the API process; None where a signal ended it, or nobody knows."""
    signal: int | None = None
    oom_killed: bool | None = None
    """The kernel killed a process for memory in that moment; None: this host does not tell."""
    cause: str
    """One word: `out_of_memory`, `engine_died`, `bad_flag` ..."""
    message: str
    """One line: the reason that `status` shows."""
    lever: str | None = None
    """The flag or setting that helps, where the failure is a known one."""
    state: str
    """What became of the replica: BACKOFF or FAILED."""
    figures: CrashFigures = CrashFigures()
    gpus: Sequence[CrashGpu] = []
    tracebacks: Sequence[Traceback] = []
    last_lines: Sequence[str] = []
    log: str
    evidence: str | None = None
    """Stacks and process states that were saved before a kill."""

    @property
    def headline(self) -> str:
        """One line for lists."""
        return f"{self.replica} start {self.generation} crashed: {self.message}" + (
            f" -- {self.lever}" if self.lever else ""
        )
