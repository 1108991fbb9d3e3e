"""Monotonic seconds that pass when a test says so."""

from __future__ import annotations


class Stopwatch:
    """In place of `time.monotonic`."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """So much later."""
        self._now += seconds
