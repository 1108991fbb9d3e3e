"""`round_robin`: each in turn, a replica of twice the weight twice as often, and evenly in between (nginx's smooth form)."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserved.core.policy.base import Ask, Candidate, Ties, eligible


class RoundRobin:
    """See the module."""

    ties = Ties.NONE

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}
        """Identity of a replica to what it is owed, in requests times weight."""

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> int | None:  # noqa: ARG002 - Policy's signature
        """Index of the replica; None: nothing is ready."""
        ready = eligible(candidates)
        if not ready:
            return None
        credit = {c.identity: self._credit.get(c.identity, 0.0) for c in candidates}
        for i in ready:
            credit[candidates[i].identity] += _share(candidates[i])
        chosen = max(ready, key=lambda i: (credit[candidates[i].identity], -i))
        credit[candidates[chosen].identity] -= sum(_share(candidates[i]) for i in ready)
        self._credit = credit
        return chosen


def _share(candidate: Candidate) -> float:
    return candidate.weight * candidate.ramp
