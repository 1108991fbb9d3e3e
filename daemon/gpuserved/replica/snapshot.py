"""A replica as the rest of the daemon sees it: one frozen value, as of now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuserved.core.assignment import Assignment
from gpuserved.core.load import Growth, Scrape
from gpuserved.core.state import Goal, Replica, State
from gpuserved.engines.installed import Installed


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """The present process and its shim. The PIDs and `started_at` (Unix seconds) are None until the shim has said them."""

    pid: int | None
    """Of the engine's API process."""
    shim_pid: int | None
    shim_version: str | None
    """Of the gpuserve that started the shim; None: it is from before that was noted."""
    shim_socket: str
    started_at: float | None
    nonce: str
    folder: Path
    """The run folder of this start."""


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """What its controller knows of a replica. Taken at one moment, it does not change with the replica."""

    id: str
    """`PROFILE-N`."""
    r: Replica
    """Its place in the lifecycle."""
    assignment: Assignment
    """What its present process runs, or its next one where none runs."""
    next_assignment: Assignment | None
    """What its next start runs, where that is something else."""
    process: ProcessSnapshot | None
    """None: nothing of it runs, or its start has not forked yet."""
    address: str | None
    """Where its present process listens: `unix:PATH` or `HOST:PORT`."""
    admit: bool
    """True while it is in rotation."""
    figures: Scrape
    load: Growth
    phase: str | None
    """What its start is doing, in words; None: it does not start, or does not say."""
    installed: Installed | None
    """What its present process was started from."""
    outdated: str | None
    """How its environment differs from that by now, in words."""
    drains_until: float | None
    """The deadline of its present drain by `time.monotonic`."""

    @property
    def target(self) -> Assignment:
        """What it is to run: its next assignment, or the present one where nothing changes."""
        return self.next_assignment or self.assignment

    @property
    def is_down(self) -> bool:
        """True where nothing of it runs and nothing is meant to."""
        return self.r.state is State.STOPPED and self.process is None and self.r.goal is Goal.STOP
