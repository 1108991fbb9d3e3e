"""A model of four replicas and their routers: everything but the policy and its key is a model, and those two are the router's own.

A replica computes prompts one after the other, 10,000 tokens a second; keeps 16-token blocks in an LRU list; and writes a token
every 15 ms, whatever else it does. A router knows what a real one knows: its own choices, everybody's in-flight counts, when
the first byte comes, and once a second the engine's counters.
"""

from __future__ import annotations

import heapq
import mmap
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from tests.policy.traffic import BYTES_PER_TOKEN, Conversation, prose

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import Ask, Candidate, Policy, Ties
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefill import Prefill, Queued
from gpuserved.core.policy.prefix_key import PrefixKey, prefix_key
from gpuserved.core.policy.session import session_key
from gpuserved.router.peers import MAP_BYTES, Ring

BLOCK_TOKENS = 16
PREFILL_TOKENS_PER_S = 10_000.0
TOKEN_S = 0.015
STEP_S = 0.005
SCRAPE_S = 1.0


def blocks_of(conversation: Conversation) -> tuple[list[int], int]:
    """The engine's chained block hashes of a prompt, and its tokens."""
    text = "".join(conversation.prompt())
    step = BLOCK_TOKENS * BYTES_PER_TOKEN
    chain, found = 0, []
    for at in range(0, len(text) - step + 1, step):
        chain = hash((chain, text[at : at + step]))
        found.append(chain)
    return found, len(text) // BYTES_PER_TOKEN


class Cache:
    """The engine's LRU list of full blocks."""

    def __init__(self, tokens: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._max = tokens // BLOCK_TOKENS

    def found(self, blocks: list[int]) -> int:
        n = 0
        while n < len(blocks) and blocks[n] in self._blocks:
            n += 1
        return n

    def touch(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max:
            self._blocks.popitem(last=False)


@dataclass
class Call:
    """One request on its way."""

    conversation: Conversation
    sent_at: float
    answer_tokens: int
    blocks: list[int]
    tokens: int
    router: int = 0
    replica: int = 0
    queued: Queued | None = None


@dataclass
class Replica:
    cache: Cache
    waiting: deque[Call] = field(default_factory=deque)
    computing: Call | None = None
    in_flight: int = 0
    requests: int = 0
    hits: int = 0
    queries: int = 0


@dataclass
class Result:
    """What one run showed."""

    hit_rate: float
    ttft_s: list[float]
    imbalance: float
    """Largest in-flight count over the mean, averaged over the time in which conversations begin, but for its first tenth."""
    requests_imbalance: float

    def ttft_ms(self, quantile: float) -> float:
        ordered = sorted(self.ttft_s)
        return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


class Router:
    """One router process: its own policy, its own mirrors, and the ring in which it tells the others what it sent."""

    def __init__(self, policy: Policy, replicas: int, believed_tokens: float) -> None:
        self.policy = policy
        self.mirrors = [Mirror(believed_tokens) for _ in range(replicas)]
        self.prefill = [Prefill() for _ in range(replicas)]
        self.shared = mmap.mmap(-1, MAP_BYTES)
        self.writes = Ring(self.shared)
        self.hears: list[Ring] = []

    def listen(self, now: float) -> None:
        for ring in self.hears:
            for note in ring.read():
                tokens = self.mirrors[note.identity].sent(note.key)
                self.prefill[note.identity].noted(tokens, note.sent_at, now)

    def send(self, replica: int, key: PrefixKey, now: float) -> Queued:
        self.writes.write(replica, 1, key, now)
        return self.prefill[replica].sent(self.mirrors[replica].sent(key), now)


class Box:
    """The whole machine, event by event."""

    def __init__(
        self, make: Callable[[], Policy], *, replicas: int = 4, routers: int = 1, cache_tokens: int = 60_000, believed_tokens: float | None = None, shared: bool = True, seed: int = 0
    ) -> None:  # fmt: skip
        self.replicas = [Replica(Cache(cache_tokens)) for _ in range(replicas)]
        self.routers = [Router(make(), replicas, believed_tokens or cache_tokens) for _ in range(routers)]
        if shared:
            for router in self.routers:
                router.hears = [Ring(other.shared) for other in self.routers if other is not router]
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._rng = random.Random(seed)
        self.ttft_s: list[float] = []
        self._area = self._weight = 0.0
        self._seen_at = 0.0
        self._left = 0
        self._steady = (0.0, 0.0)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def run(self, traffic: list[Conversation]) -> Result:
        for conversation in traffic:
            self._left += 1
            self.at(conversation.starts_at_s, lambda c=conversation: self._ask(c))  # type: ignore[misc]
        last = max(c.starts_at_s for c in traffic)
        self._steady = last / 10, last
        self.at(SCRAPE_S, self._scrape)
        while self._left:
            when, _, what = heapq.heappop(self._events)
            self._watch(when)
            self.now = when
            what()
        queries = sum(r.queries for r in self.replicas)
        requests = [r.requests for r in self.replicas]
        return Result(
            sum(r.hits for r in self.replicas) / queries,
            self.ttft_s,
            self._area / self._weight,
            max(requests) * len(requests) / sum(requests),
        )

    def _watch(self, when: float) -> None:
        counts = [r.in_flight for r in self.replicas]
        if any(counts) and self._steady[0] <= when <= self._steady[1]:
            span = when - self._seen_at
            self._area += span * max(counts) * len(counts) / sum(counts)
            self._weight += span
        self._seen_at = when

    def _scrape(self) -> None:
        for router in self.routers:
            for mirror, replica in zip(router.mirrors, self.replicas, strict=True):
                mirror.learn_counters(replica.hits, replica.queries)
        self.at(self.now + SCRAPE_S, self._scrape)

    def _ask(self, conversation: Conversation) -> None:
        said, answer_tokens, _ = conversation.turns[0]
        conversation.messages.append({"role": "user", "content": said})
        blocks, tokens = blocks_of(conversation)
        call = Call(
            conversation, self.now, answer_tokens, blocks, tokens, self._rng.randrange(len(self.routers))
        )
        router = self.routers[call.router]
        ask = Ask()
        router.listen(self.now)
        if router.policy.ties is Ties.PREFIX:
            ask = Ask(prefix=prefix_key(conversation.body()))
        elif router.policy.ties is Ties.SESSION:
            ask = Ask(session=session_key(conversation.name))
        chosen = router.policy.choose(
            ask,
            [
                Candidate(
                    replica.in_flight,
                    Rotation.IN,
                    identity=session_key(f"r-{n}"),
                    mirror=router.mirrors[n],
                    queued_tokens=router.prefill[n].tokens(self.now),
                )
                for n, replica in enumerate(self.replicas)
            ],
        )
        assert chosen is not None
        call.replica = chosen
        if ask.prefix is not None:
            call.queued = router.send(chosen, ask.prefix, self.now)
        replica = self.replicas[chosen]
        replica.in_flight += 1
        replica.requests += 1
        replica.waiting.append(call)
        self._compute(replica)

    def _compute(self, replica: Replica) -> None:
        if replica.computing is not None or not replica.waiting:
            return
        call = replica.computing = replica.waiting.popleft()
        cached = BLOCK_TOKENS * min(replica.cache.found(call.blocks), (call.tokens - 1) // BLOCK_TOKENS)
        replica.hits += cached
        replica.queries += call.tokens
        took = STEP_S + (call.tokens - cached) / PREFILL_TOKENS_PER_S
        self.at(self.now + took, lambda: self._first_token(replica, call))

    def _first_token(self, replica: Replica, call: Call) -> None:
        replica.cache.touch(call.blocks)
        replica.computing = None
        if call.queued is not None:
            self.routers[call.router].prefill[call.replica].begun(call.queued, self.now, streams=True)
        self.ttft_s.append(self.now - call.sent_at)
        self.at(self.now + call.answer_tokens * TOKEN_S, lambda: self._done(replica, call))
        self._compute(replica)

    def _done(self, replica: Replica, call: Call) -> None:
        replica.in_flight -= 1
        conversation = call.conversation
        text = prose(conversation.answers, call.answer_tokens)
        conversation.messages.append({"role": "assistant", "content": text})
        replica.cache.touch(blocks_of(conversation)[0])
        _, _, think_s = conversation.turns.pop(0)
        if conversation.turns:
            self.at(self.now + think_s, lambda: self._ask(conversation))
        else:
            self._left -= 1
