"""`prefix`: the replica where the prompt is computed soonest, given what each has in its prefix cache.

The cost of a replica is in tokens of prompt that must be computed: this prompt's that are not in its cache, those that they push out of
a full cache (their conversations will pay for it), those of requests sent there and not yet begun, and a price for each request in
flight, which shares the engine's steps with all others. The least wins.

    cost = (uncached + evicted + queued) / weight + price x load
    price = min(320, 3200 / mean load), and 32000 / mean load where no replica has more of the prompt than another

The price is relative to the mean, so that a tenth too much weighs the same with 10 and with 100 in flight; the cap keeps a single
request on an idle machine from outweighing a cached prompt. Where there is nothing to win by going to one replica the choice is
almost `least_inflight`, but knows whose queue of prompts is long. Without `evicted` one client at a time would keep to one replica and
leave the other caches empty. A prompt that many ask for spreads by itself: its replica's queue grows until another is cheaper, which
then has it too. The figures come from the simulation in tests/policy; docs/performance.md has its table.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuserved.core.policy.base import Ask, Candidate, Ties, eligible, load
from gpuserved.core.policy.least_inflight import LeastInflight

PRICE_MAX_TOKENS = 320.0
PRICE_TOKENS = 3200.0
PRICE_UNTIED_TOKENS = 32_000.0


class Prefix:
    """See the module. A request without a prompt that could be read goes where the fewest are in flight."""

    ties = Ties.PREFIX

    def __init__(self) -> None:
        self._untied = LeastInflight()
        self._cursor = 0

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> int | None:
        """Index of the replica; None: nothing is ready."""
        key = ask.prefix
        if key is None:
            return self._untied.choose(ask, candidates)
        ready = eligible(candidates)
        if not ready:
            return None
        cached: list[int] = []
        loads: list[float] = []
        ratio = 0.0
        for i in ready:
            one = candidates[i]
            mirror = one.mirror
            if mirror is None:
                return self._untied.choose(ask, candidates)
            cached.append(mirror.cached_bytes(key))
            loads.append(load(one))
            ratio += mirror.bytes_per_token
        mean = sum(loads) / len(ready)
        ratio /= len(ready)
        if max(cached) == min(cached):
            price = PRICE_UNTIED_TOKENS / mean
        else:
            price = min(PRICE_MAX_TOKENS, PRICE_TOKENS / mean)
        size, count, cursor = key.size_bytes, len(candidates), self._cursor
        best, chosen = (float("inf"), 0.0, 0), ready[0]
        for i, has, busy in zip(ready, cached, loads, strict=True):
            one = candidates[i]
            new = size - has
            mirror = one.mirror
            evicted = 0.0 if mirror is None else mirror.used_bytes + new - mirror.bound_bytes
            tokens = (new + evicted if evicted > 0 else new) / ratio + one.queued_tokens
            cost = tokens / one.weight + price * busy, busy, (i - cursor) % count
            if cost < best:
                best, chosen = cost, i
        self._cursor = chosen + 1
        return chosen
