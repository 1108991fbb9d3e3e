"""May a server that nobody supervises take requests? Decided from its health checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

SILENT_MAX = 3
"""Health checks in a row without an answer that take a server out (Kubernetes' failureThreshold)."""

Key = TypeVar("Key")


class Check(Enum):
    """What one health check found."""

    OK = "ok"
    REFUSED = "refused"
    """Nobody listens there."""
    FAILING = "failing"
    """An answer that is not 200: vLLM answers 503 once its engine is dead."""
    SILENT = "silent"
    """No answer in time, or none that could be read: busy, perhaps."""


@dataclass(frozen=True)
class UpstreamRow:
    """What is known of one server."""

    up: bool = False
    silent: int = 0
    """Silent checks in a row."""
    said: Check | None = None
    """The last check; None: not asked yet."""


def observe(row: UpstreamRow, check: Check) -> UpstreamRow:
    """The row after a health check. One answer brings a server back; one refusal takes it out, silence only `SILENT_MAX`
    times in a row: an engine in a long prefill answers late.
    """
    if check is Check.OK:
        return UpstreamRow(up=True, said=check)
    if check is Check.SILENT:
        silent = row.silent + 1
        return UpstreamRow(up=row.up and silent < SILENT_MAX, silent=silent, said=check)
    return UpstreamRow(said=check)


def admitted(rows: Mapping[Key, UpstreamRow]) -> set[Key]:
    """Who takes requests. Where nobody is up, those that are merely silent: a late answer is better than none."""
    up = {key for key, row in rows.items() if row.up}
    return up or {key for key, row in rows.items() if row.said is Check.SILENT}
