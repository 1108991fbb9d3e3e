"""`session`: one session stays on one replica, unless that has more than its share of the load.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam: arXiv 1608.01350), on weighted rendezvous hashing instead of a
ring: every session ranks the replicas by a hash of both, and takes the first that is below its bound. A replica that comes takes
its share of the sessions from all others, one that goes leaves its sessions to the others, and no other session moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, log

from gpuserved.core.policy.base import Ask, Candidate, Ties, eligible
from gpuserved.core.policy.least_inflight import LeastInflight

LOAD_FACTOR = 1.25
"""c: a replica takes at most this many times the mean."""
FREE_IN_FLIGHT = 4
"""Below this many in flight no replica has too many: an engine's batch has room for them at no cost to each other."""
_MASK = (1 << 64) - 1


def session_key(name: str) -> int:
    """64 bits for the name of a session, or of a replica; the same in every process."""
    return int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8).digest(), "big")


def rank(session: int, identity: int, weight: float) -> float:
    """The replica with the largest one is the session's own (weighted rendezvous: -weight / ln u, u uniform).

    u is made of SplitMix64's output; of 52 bits and a half it is a float that is neither 0 nor 1.
    """
    mixed = (session ^ identity) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    mixed ^= mixed >> 31
    return -weight / log(((mixed >> 12) + 0.5) / (1 << 52))


class Session:
    """See the module. A request without a session goes where the fewest are in flight."""

    ties = Ties.SESSION

    def __init__(self, load_factor: float = LOAD_FACTOR) -> None:
        self._load_factor = load_factor
        self._untied = LeastInflight()

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> int | None:
        """Index of the replica; None: nothing is ready."""
        session = ask.session
        if session is None:
            return self._untied.choose(ask, candidates)
        ready = eligible(candidates)
        if not ready:
            return None
        share = self._load_factor * (1 + sum(candidates[i].in_flight for i in ready))
        share /= sum(candidates[i].weight for i in ready)
        below = [i for i in ready if candidates[i].in_flight < _bound(candidates[i], share)]
        return max(below or ready, key=lambda i: rank(session, candidates[i].identity, candidates[i].weight))


def _bound(candidate: Candidate, share: float) -> int:
    if candidate.ramp < 1:
        return ceil(share * candidate.weight * candidate.ramp)
    return max(FREE_IN_FLIGHT, ceil(share * candidate.weight))
