"""Requests that kill replicas: known again by a digest, so that a client's own retries kill no more."""

from __future__ import annotations

import hashlib

from gpuserved.core.replay import BODY_MAX_BYTES, DEATHS_MAX
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body


def _digest(path: str, body: Body) -> bytes | None:
    """None: too long to be worth it."""
    if body.size > BODY_MAX_BYTES:
        return None
    digest = hashlib.sha256(path.encode() + b"\0")
    if body.size:
        digest.update(body.view())
    return digest.digest()


def check(context: Context, path: str, body: Body, now: float) -> None:
    """:raises HttpError: 502: this very request has killed as many replicas as one may."""
    if context.blocked:
        digest = _digest(path, body)
        if digest is not None and context.blocked.blocks(digest, now):
            raise errors.blocked(DEATHS_MAX)


def remember(context: Context, path: str, body: Body, deaths: int, now: float) -> None:
    """It ended without an answer after so many deaths."""
    digest = _digest(path, body) if deaths else None
    if digest is not None:
        context.blocked.add(digest, deaths, now)
