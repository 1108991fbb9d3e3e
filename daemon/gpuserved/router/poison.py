"""Requests that kill replicas: known again by a digest, so that a client's own retries kill no more."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from gpuserved.core.replay import BODY_MAX_BYTES, DEATHS_MAX
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body

BLOCKED_S = 600.0
REMEMBERED_MAX = 4096


def _digest(path: str, body: Body) -> bytes | None:
    """What a request is known by; None: it is too long to be worth it."""
    if body.size > BODY_MAX_BYTES:
        return None
    digest = hashlib.sha256(path.encode() + b"\0")
    if body.size:
        digest.update(body.view())
    return digest.digest()


class Poison:
    """Deaths by request, within `BLOCKED_S` of the last one. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def check(self, path: str, body: Body, now: float) -> None:
        """:raises HttpError: 502: this very request has killed as many replicas as one may."""
        if self and self.deaths(path, body, now) >= DEATHS_MAX:
            raise errors.blocked(DEATHS_MAX)

    def deaths(self, path: str, body: Body, now: float) -> int:
        """How many this request has had."""
        digest = _digest(path, body)
        return 0 if digest is None else self._count(digest, now)

    def remember(self, path: str, body: Body, deaths: int, now: float) -> None:
        """It ended without an answer after so many deaths."""
        digest = _digest(path, body) if deaths else None
        if digest is None:
            return
        self._deaths[digest] = (self._count(digest, now) + deaths, now)
        self._deaths.move_to_end(digest)
        while len(self._deaths) > REMEMBERED_MAX:
            self._deaths.popitem(last=False)

    def _count(self, digest: bytes, now: float) -> int:
        count, at = self._deaths.get(digest, (0, now))
        if now - at > BLOCKED_S:
            del self._deaths[digest]
            return 0
        return count
