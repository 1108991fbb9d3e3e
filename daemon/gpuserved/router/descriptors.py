"""File descriptors: all we may have, and whether there are enough."""

from __future__ import annotations

import resource

_RESERVED = 128
"""For the control socket, the shims, health checks and logs."""
_PER_REQUEST = 2
"""Beside the client's own: the replica's, and a spooled body's."""


def enough(limit: int, *, connections: int, requests: int) -> bool:
    """Are there descriptors for so many clients and requests?"""
    return connections + _PER_REQUEST * requests <= limit - _RESERVED


def raise_limit() -> int:
    """All file descriptors we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
