"""`least_inflight`: the replica with the fewest requests for its weight; equal ones take turns."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserved.core.policy.base import Ask, Candidate, Ties, eligible, load


class LeastInflight:
    """See the module."""

    ties = Ties.NONE

    def __init__(self) -> None:
        self._cursor = 0

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> int | None:  # noqa: ARG002 - Policy's signature
        """Index of the replica; None: nothing is ready."""
        ready = eligible(candidates)
        if not ready:
            return None
        count, cursor = len(candidates), self._cursor
        chosen = min(ready, key=lambda i: (load(candidates[i]), (i - cursor) % count))
        self._cursor = chosen + 1
        return chosen

    def choose_even(self, in_flight: Sequence[int]) -> int:
        """The same for candidates that are all in rotation, warm, and of one weight: most of the time all are."""
        count = len(in_flight)
        start = self._cursor % count
        least = min(in_flight)
        try:
            chosen = in_flight.index(least, start)
        except ValueError:
            chosen = in_flight.index(least)
        self._cursor = chosen + 1
        return chosen
