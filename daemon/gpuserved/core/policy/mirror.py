"""A router's picture of one replica's prefix cache: which blocks of which prompts it holds, by what this router sent there. Pure.

The engine keeps its KV blocks in one LRU list, the tail of a prompt older than its head; so does the mirror, over blocks of text.
Its bound is the engine's capacity, in bytes of text. Bytes per token are what went there over what the engine's counter of looked-up
tokens grew by. What the mirror cannot know (answers, KV of running requests, another way of eviction) shows in the engine's counter
of hits: where there are fewer than the mirror promised, the bound shrinks; where there are more, it grows again.
"""

from __future__ import annotations

from collections import OrderedDict

from gpuserved.core.policy.prefix_key import PrefixKey

BYTES_PER_TOKEN = 4.0
"""English prose under the tokenizers of present models; replaced by what the counters say."""
RATIO_MIN, RATIO_MAX = 2.0, 8.0
"""What is outside says that others use the engine too, or that it does not count what we think."""
CAPACITY_TOKENS = 100_000
"""Until the engine says: an 8B model on an 80 GiB card keeps several times as much, and too small a mirror errs on the safe side."""
ENTRIES_MAX = 200_000
"""Blocks of one mirror, whatever the engine says: 30 MB."""
SHRINK, GROW = 0.85, 1.1
FACTOR_MIN = 1 / 32
TOLERANCE = 0.03
"""A difference of hit rates that is no news: blocks of text and of tokens do not end in the same places."""
FADE = 0.9
"""What past figures count for beside new ones, when bytes per token are worked out: a prompt sent is not looked up at once."""
NEWS_MIN_TOKENS = 4096
"""Prompt tokens that must have been seen before a hit rate is believed."""


class Mirror:
    """One replica's start; a new generation begins with a new one."""

    __slots__ = (
        "_asked_all", "_blocks", "_bound", "_hits", "_promised", "_queries", "_sent", "_sent_all", "_unread",
        "asked_bytes", "bytes_per_token", "capacity_tokens", "factor", "found_bytes", "used_bytes",
    )  # fmt: skip

    def __init__(self, capacity_tokens: float = CAPACITY_TOKENS) -> None:
        self._blocks: OrderedDict[bytes, int] = OrderedDict()
        self.used_bytes = 0
        self.capacity_tokens = capacity_tokens
        self.bytes_per_token = BYTES_PER_TOKEN
        self.asked_bytes = self.found_bytes = 0
        """Text of all prompts sent there, and how much of it the mirror held."""
        self.factor = 1.0
        """What the counters make of the capacity."""
        self._sent_all = self._asked_all = 0.0
        self._restart(None, 0.0)
        self._set_bound()

    @property
    def bound_bytes(self) -> float:
        """Bytes of text it holds at most."""
        return self._bound

    def __len__(self) -> int:
        return len(self._blocks)

    def cached_bytes(self, key: PrefixKey) -> int:
        """How much of a prompt's beginning the replica has."""
        blocks = self._blocks
        found = 0
        for digest in key.blocks:
            if digest not in blocks:
                break
            found += 1
        return key.ends[found - 1] if found else 0

    def tokens(self, size_bytes: float) -> float:
        """Tokens that so much text makes."""
        return size_bytes / self.bytes_per_token

    def sent(self, key: PrefixKey) -> float:
        """The replica gets this prompt; returns the tokens of it that must be computed."""
        cached = self.cached_bytes(key)
        self._promised += cached
        self._sent += key.size_bytes
        self.asked_bytes += key.size_bytes
        self.found_bytes += cached
        blocks = self._blocks
        for at in range(len(key.blocks) - 1, -1, -1):
            digest = key.blocks[at]
            if digest in blocks:
                blocks.move_to_end(digest)
            else:
                size = key.ends[at] - (key.ends[at - 1] if at else 0)
                blocks[digest] = size
                self.used_bytes += size
        self._evict()
        return self.tokens(key.size_bytes - cached)

    def unread(self) -> None:
        """The replica gets a request whose prompt was not read: the next figures say nothing about bytes per token."""
        self._unread = True

    def learn_capacity(self, tokens: float) -> None:
        """The engine said how many tokens its cache holds."""
        if tokens > 0:
            self.capacity_tokens = tokens
            self._set_bound()

    def learn_counters(self, hits: float, queries: float) -> None:
        """The engine's counters: tokens looked up in its prefix cache, and tokens found there, since it started."""
        if self._hits is None or queries < self._queries:
            if self._hits is not None:
                # Another process answers at the address.
                self.clear()
            self._restart(hits, queries)
            return
        asked = queries - self._queries
        if asked < NEWS_MIN_TOKENS or self.tokens(self._sent) < NEWS_MIN_TOKENS:
            return
        difference = self._promised / self._sent - (hits - self._hits) / asked
        if difference > TOLERANCE:
            self.factor = max(FACTOR_MIN, self.factor * SHRINK)
        else:
            self.factor = min(1.0, self.factor * GROW)
        if not self._unread and RATIO_MIN <= self._sent / asked <= RATIO_MAX:
            self._sent_all = self._sent_all * FADE + self._sent
            self._asked_all = self._asked_all * FADE + asked
            self.bytes_per_token = self._sent_all / self._asked_all
        self._set_bound()
        self._restart(hits, queries)

    def clear(self) -> None:
        """The engine forgot everything."""
        self._blocks.clear()
        self.used_bytes = 0

    def _restart(self, hits: float | None, queries: float) -> None:
        self._hits, self._queries = hits, queries
        self._promised = self._sent = 0.0
        self._unread = False

    def _set_bound(self) -> None:
        self._bound = self.capacity_tokens * self.bytes_per_token * self.factor
        self._evict()

    def _evict(self) -> None:
        blocks = self._blocks
        while self.used_bytes > self._bound or len(blocks) > ENTRIES_MAX:
            self.used_bytes -= blocks.popitem(last=False)[1]
