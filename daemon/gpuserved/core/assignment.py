"""What one replica runs, and where."""

from __future__ import annotations

from dataclasses import dataclass

from gpuserved.core.profile import Profile


@dataclass(frozen=True)
class Assignment:
    """What one replica runs, and where."""

    replica: str
    profile: Profile
    gpu_indexes: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    simulated: bool = False
    """Its GPUs exist on paper only."""
