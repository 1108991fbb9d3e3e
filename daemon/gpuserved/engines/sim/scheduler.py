"""One engine step: who is admitted, how many tokens are computed, what comes out, and the KV cache they lie in. No clock, no I/O.

The cache is fixed blocks: full ones are kept under the hash of everything before them, the oldest free one is reused first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from gpuserved.engines.sim.tokens import EOS, answer

BLOCK_TOKENS = 16
"""vLLM's block size on GPUs."""


def block_hashes(tokens: Sequence[int], salt: str = "") -> list[int]:
    """One hash for each full block; it stands for the block and all before it."""
    chain = hash(("sim", salt)) if salt else 0
    found = []
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        chain = hash((chain, *tokens[start : start + BLOCK_TOKENS]))
        found.append(chain)
    return found


class BlockPool:
    """All blocks of one engine. Free blocks keep their content until they are handed out again."""

    def __init__(self, capacity_tokens: int) -> None:
        self.total = max(2, capacity_tokens // BLOCK_TOKENS)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self.total))
        self._users = [0] * self.total
        self._hash_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that no request holds."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """0 to 1."""
        return 1.0 - len(self._free) / self.total

    def cached(self, hashes: Sequence[int]) -> list[int]:
        """The blocks of the longest cached prefix, not yet held."""
        found = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """Take cached blocks into use."""
        for block in blocks:
            self._free.pop(block, None)
            self._users[block] += 1

    def would_fit(self, cached: Sequence[int], new: int) -> bool:
        """Whether `new` blocks are left once `cached` ones are held."""
        return len(self._free) - sum(1 for block in cached if self._users[block] == 0) >= new

    def allocate(self, count: int) -> list[int] | None:
        """`count` fresh blocks, or None and nothing taken."""
        if len(self._free) < count:
            return None
        taken = list(islice(self._free, count))
        for block in taken:
            del self._free[block]
            self._users[block] = 1
            digest = self._hash_of.pop(block, None)
            if digest is not None and self._block_of.get(digest) == block:
                del self._block_of[digest]
        return taken

    def remember(self, block: int, digest: int) -> None:
        """File a block that has become full."""
        if block not in self._hash_of:
            self._hash_of[block] = digest
            self._block_of.setdefault(digest, block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back a request's blocks; the tail of a prompt is the first to be reused."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None

    def reset(self) -> None:
        """Forget all cached content."""
        self._hash_of.clear()
        self._block_of.clear()


@dataclass(eq=False)
class EngineRequest:
    """A request inside the engine."""

    id: str
    prompt: list[int]
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int = 0
    salt: str = ""
    stop_token_ids: frozenset[int] = frozenset()
    words: Iterator[int] = field(init=False)
    output: list[int] = field(default_factory=list)
    computed: int = 0
    """Tokens whose KV entries exist."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = answer(self.prompt, self.seed, min_tokens=self.min_tokens, ignore_eos=self.ignore_eos)

    @property
    def length(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt) + len(self.output)


@dataclass
class Step:
    """What one step does."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0
    queried_tokens: int = 0
    preempted: int = 0
    admitted: list[str] = field(default_factory=list)
    cached_by_request: dict[str, int] = field(default_factory=dict)
    outputs: list[tuple[str, list[int], str | None, int | None]] = field(default_factory=list)
    """Request, new tokens, finish reason, the stop token that ended it."""


class Scheduler:
    """Continuous batching with chunked prefill over a block pool."""

    def __init__(self, kv_cache_tokens: int, max_num_seqs: int, max_batched_tokens: int) -> None:
        self.pool = BlockPool(kv_cache_tokens)
        self.waiting: deque[EngineRequest] = deque()
        self.running: list[EngineRequest] = []
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens

    @property
    def busy(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self.waiting or self.running)

    def add(self, request: EngineRequest) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Drop a request; False where it is not here any more."""
        for request in self.running:
            if request.id == request_id:
                self._leave(request)
                return True
        for request in self.waiting:
            if request.id == request_id:
                self.waiting.remove(request)
                return True
        return False

    def step(self) -> Step:
        """Compute one step."""
        step = Step()
        budget = self._max_batched_tokens
        ready = self._grow(step)
        budget -= len(ready)
        step.decode_tokens = len(ready)
        for request in self.running:
            if request not in ready and budget > 0:
                budget -= self._prefill(request, budget, step, ready)
        while self.waiting and budget > 0 and len(self.running) < self._max_num_seqs and not step.preempted:
            request = self.waiting[0]
            if not self._admit(request, step):
                break
            self.waiting.popleft()
            self.running.append(request)
            budget -= self._prefill(request, budget, step, ready)
        for request in ready:
            step.outputs.append(self._sample(request))
        return step

    def _grow(self, step: Step) -> list[EngineRequest]:
        """The requests that decode; where blocks run out the youngest is preempted and computed again later."""
        ready: list[EngineRequest] = []
        for request in list(self.running):
            if request not in self.running or request.computed < request.length - 1:
                continue
            while request in self.running and len(request.blocks) * BLOCK_TOKENS < request.length:
                fresh = self.pool.allocate(1)
                if fresh:
                    request.blocks += fresh
                    continue
                victim = self.running[-1]
                self._leave(victim)
                victim.computed = 0
                self.waiting.appendleft(victim)
                step.preempted += 1
                if victim in ready:
                    ready.remove(victim)
            if request in self.running:
                request.computed = request.length
                ready.append(request)
        return ready

    def _admit(self, request: EngineRequest, step: Step) -> bool:
        tokens = request.prompt + request.output
        request.hashes = block_hashes(tokens, request.salt)
        # The last token is always computed: its logits are the answer.
        cached = self.pool.cached(request.hashes[: (len(tokens) - 1) // BLOCK_TOKENS])
        new = -(-len(tokens) // BLOCK_TOKENS) - len(cached)
        if not self.pool.would_fit(cached, new):
            return False
        self.pool.hold(cached)
        request.blocks = [*cached, *(self.pool.allocate(new) or [])]
        request.computed = len(cached) * BLOCK_TOKENS
        step.admitted.append(request.id)
        step.queried_tokens += len(tokens)
        step.cached_tokens += request.computed
        step.cached_by_request[request.id] = request.computed
        return True

    def _prefill(self, request: EngineRequest, budget: int, step: Step, ready: list[EngineRequest]) -> int:
        todo = min(budget, request.length - request.computed)
        request.computed += todo
        step.prefill_tokens += todo
        full = min(request.computed // BLOCK_TOKENS, len(request.hashes))
        for at in range(full):
            self.pool.remember(request.blocks[at], request.hashes[at])
        if request.computed >= request.length:
            ready.append(request)
        return todo

    def _sample(self, request: EngineRequest) -> tuple[str, list[int], str | None, int | None]:
        token = next(request.words)
        request.output.append(token)
        self._file_full_block(request)
        reason: str | None = None
        stop: int | None = None
        if token == EOS:
            reason = "stop"
        elif token in request.stop_token_ids and len(request.output) > request.min_tokens:
            reason, stop = "stop", token
        elif len(request.output) >= request.max_tokens:
            reason = "length"
        if reason:
            self._leave(request)
        return request.id, [token], reason, stop

    def _file_full_block(self, request: EngineRequest) -> None:
        """A block that the answer has filled is found by the next turn of the same conversation."""
        at = len(request.hashes)
        full = request.computed // BLOCK_TOKENS
        if full <= at or at >= len(request.blocks):
            return
        tokens = (request.prompt + request.output)[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS]
        before = (
            request.hashes[-1] if request.hashes else (hash(("sim", request.salt)) if request.salt else 0)
        )
        digest = hash((before, *tokens))
        request.hashes.append(digest)
        self.pool.remember(request.blocks[at], digest)

    def _leave(self, request: EngineRequest) -> None:
        self.running.remove(request)
        self.pool.release(request.blocks)
        request.blocks = []
