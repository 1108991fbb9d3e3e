"""Wire types of what is asked of single GPUs: quarantine and release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpuserved.api.types import GpuView, Request


class GpusRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quarantine or release these GPUs (indexes or UUIDs)."""

    gpus: list[str]
    reason: str | None = None
    """Of a quarantine, for whoever looks next."""
    generation: int | None = None


class GpusResult(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs as they are now, and what becomes of replicas."""

    generation: int
    gpus: Sequence[GpuView] = []
    replicas: Mapping[str, str] = {}
    """Replica -> what becomes of it, in words."""
    notes: Sequence[str] = []
    """GPUs for which nothing was to do, in words."""
