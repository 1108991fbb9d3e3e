"""Requests that kill replicas: remembered by a digest, so that a client's own retries kill no more. Pure."""

from __future__ import annotations

from collections import OrderedDict

from gpuserved.core.replay import DEATHS_MAX

BLOCKED_S = 600.0
REMEMBERED_MAX = 4096


class Blocked:
    """Deaths by request, within `BLOCKED_S` of the last one. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def add(self, digest: bytes, deaths: int, now: float) -> None:
        """A request ended with so many deaths and no answer."""
        self._deaths[digest] = (self.deaths(digest, now) + deaths, now)
        self._deaths.move_to_end(digest)
        while len(self._deaths) > REMEMBERED_MAX:
            self._deaths.popitem(last=False)

    def deaths(self, digest: bytes, now: float) -> int:
        """How many it has had; `DEATHS_MAX` or more: it is blocked."""
        count, at = self._deaths.get(digest, (0, now))
        if now - at > BLOCKED_S:
            del self._deaths[digest]
            return 0
        return count

    def blocks(self, digest: bytes, now: float) -> bool:
        """May this request not be tried again?"""
        return self.deaths(digest, now) >= DEATHS_MAX
