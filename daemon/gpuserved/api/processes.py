"""Wire types: the data plane's processes one by one, and an upgrade that failed. Parts of `api.types.Status`."""

from __future__ import annotations

import msgspec


class FailedUpgrade(msgspec.Struct, frozen=True, kw_only=True):
    """Another version was to take over and did not come up; this one went on."""

    at: float
    """Unix seconds."""
    version: str
    reason: str


class RouterProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One router process with its shim."""

    router: int
    """Which of those that run together, from 0."""
    generation: int
    """Grows with every replacement of the routers."""
    pid: int | None = None
    shim_pid: int | None = None
    version: str | None = None
    shim_version: str | None = None
    """None: older than such notes."""
    draining: bool = False
    """It was replaced, takes no more connections, and ends after its last one."""
    in_flight: int | None = None
    connections: int | None = None
