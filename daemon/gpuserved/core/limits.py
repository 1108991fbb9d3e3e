"""Rate limits as token buckets that may be overdrawn: a request's tokens are known only when its answer ends. Pure."""

from __future__ import annotations

MINUTE_S = 60.0
DAY_S = 86_400.0


class Bucket:
    """`limit` units a window, refilled evenly. Times are monotonic seconds."""

    __slots__ = ("_at", "_level", "limit", "window_s")

    def __init__(self, limit: int, window_s: float, now: float) -> None:
        self.limit = limit
        self.window_s = window_s
        self._level = float(limit)
        self._at = now

    def _refill(self, now: float) -> None:
        passed_s = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._level = min(float(self.limit), self._level + passed_s * self.limit / self.window_s)

    def wait_s(self, now: float) -> float:
        """How long until one unit is there; 0: it is."""
        self._refill(now)
        if self._level >= 1.0 - 1e-9:
            return 0.0
        return (1.0 - self._level) * self.window_s / self.limit

    def take(self, units: int, now: float) -> None:
        """Used up, be they there or not: what is overdrawn must refill first."""
        self._refill(now)
        self._level -= units

    def resize(self, limit: int, now: float) -> None:
        """Another limit from now on; what was used stays used."""
        self._refill(now)
        self._level = min(self._level + limit - self.limit, float(limit))
        self.limit = limit
