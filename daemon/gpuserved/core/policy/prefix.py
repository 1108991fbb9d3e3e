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
        cached: dict[int, int] = {}
        evicted: dict[int, float] = {}
        ratio = 0.0
        for i in ready:
            mirror = candidates[i].mirror
            if mirror is None:
                return self._untied.choose(ask, candidates)
            cached[i] = mirror.cached_bytes(key)
            evicted[i] = max(0.0, mirror.used_bytes + key.size_bytes - cached[i] - mirror.bound_bytes)
            ratio += mirror.bytes_per_token / len(ready)
        mean = sum(load(candidates[i]) for i in ready) / len(ready)
        if max(cached.values()) == min(cached.values()):
            price = PRICE_UNTIED_TOKENS / mean
        else:
            price = min(PRICE_MAX_TOKENS, PRICE_TOKENS / mean)
        count, cursor = len(candidates), self._cursor

        def cost(i: int) -> tuple[float, float, int]:
            one = candidates[i]
            tokens = (key.size_bytes - cached[i] + evicted[i]) / ratio + one.queued_tokens
            return tokens / one.weight + price * load(one), load(one), (i - cursor) % count

        chosen = min(ready, key=cost)
        self._cursor = chosen + 1
        return chosen
