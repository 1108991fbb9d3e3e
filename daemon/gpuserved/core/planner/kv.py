"""KV cache of one GPU: bytes per token, bytes of a request, and the longest request that fits.

vLLM's rules (`v1/kv_cache_interface.py`, `v1/core/kv_cache_utils.py` of 0.26 to 0.33): blocks of 16 tokens; layers of
different kinds share one pool, in groups of equally many layers; a group's last one is padded; one block is never used.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuserved.core.planner.model import LayerKind, Layers, ModelFacts

BLOCK_TOKENS = 16
"""vLLM's default block on CUDA."""
GROUP_SLACK = 1.5
"""Kinds whose numbers of layers differ by less than this factor are padded to the larger one (kv_cache_utils)."""


@dataclass(frozen=True)
class KvShape:
    """How the cache is laid out.

    :ivar value_bytes: of one number of the cache: 2 for bf16, 1 for fp8.
    :ivar in_flight_tokens: `max_in_flight_tokens`; a sliding window holds that many tokens more while they are computed.
    """

    tensor_parallel_size: int = 1
    value_bytes: int = 2
    in_flight_tokens: int = 8192
    block_tokens: int = BLOCK_TOKENS


def heads_per_gpu(kv_heads: int, tensor_parallel_size: int) -> int:
    """Divided over the group; each GPU holds at least one, so a wider group keeps copies (`ModelConfig.get_num_kv_heads`)."""
    return max(1, -(-kv_heads // tensor_parallel_size))


def layer_token_bytes(group: Layers, shape: KvShape) -> int:
    """Bytes of one token in one layer, on one GPU; 0 for a layer with a state."""
    if group.kind is LayerKind.STATE:
        return 0
    if group.kind is LayerKind.MLA:  # not divided: during decoding every GPU attends as with one KV head
        return group.head_dim * shape.value_bytes
    heads = heads_per_gpu(group.kv_heads, shape.tensor_parallel_size)
    return heads * (group.head_dim + group.value_dim) * shape.value_bytes


def token_bytes(facts: ModelFacts, shape: KvShape) -> int:
    """Bytes of one token on one GPU where every layer keeps it: windows are left out of account, so never too few."""
    return sum(group.count * layer_token_bytes(group, shape) for group in facts.layers)


def request_bytes(facts: ModelFacts, shape: KvShape, length: int) -> int:
    """What one request of `length` tokens occupies on one GPU."""
    kinds = [group for group in facts.layers if group.count]
    page, block = _page(kinds, shape)
    per_group = _layers_per_group([group.count for group in kinds])
    total = 0
    for group in kinds:
        blocks = _blocks(group, shape, length, block)
        size = per_group or group.count
        total += -(-group.count // size) * size * blocks * page
    return total


def _page(kinds: list[Layers], shape: KvShape) -> tuple[int, int]:
    """Bytes of a block in one layer, and its tokens. A state needs a whole block, so it makes all blocks larger."""
    token = max((layer_token_bytes(group, shape) for group in kinds), default=0)
    state = max((-(-group.state_bytes // shape.tensor_parallel_size) for group in kinds), default=0)
    if not token:
        return state, shape.block_tokens
    block = shape.block_tokens * max(1, -(-state // (token * shape.block_tokens)))
    return token * block, block


def _layers_per_group(counts: list[int]) -> int | None:
    """None: one kind of layers, which are not grouped."""
    if len(counts) < 2:
        return None
    low, high = min(counts), max(counts)
    return high if high < low * GROUP_SLACK else low


def _blocks(group: Layers, shape: KvShape, length: int, block: int) -> int:
    whole = -(-length // block)
    if group.kind is LayerKind.STATE:
        return 1
    if group.kind is LayerKind.SLIDING:
        held = group.window - 1 + shape.in_flight_tokens
        return -(-min(held, length) // block) + 1  # a window may begin in the midst of a block
    return whole


def reserved_bytes(facts: ModelFacts, shape: KvShape) -> int:
    """The null block."""
    return token_bytes(facts, shape) * shape.block_tokens


def tokens(facts: ModelFacts, shape: KvShape, kv_bytes: int) -> int:
    """Tokens that fit, whole blocks. A model with a state alone has no limit by tokens: 0."""
    each = token_bytes(facts, shape) * shape.block_tokens
    return max(0, kv_bytes // each) * shape.block_tokens if each else 0


def concurrency(facts: ModelFacts, shape: KvShape, kv_bytes: int, length: int) -> float:
    """Requests of `length` tokens that fit at once."""
    return max(0.0, (kv_bytes - reserved_bytes(facts, shape)) / max(1, request_bytes(facts, shape, length)))


def longest(facts: ModelFacts, shape: KvShape, kv_bytes: int, limit: int) -> int:
    """The longest request, up to `limit`, that fits alone; 0: none."""
    room = kv_bytes - reserved_bytes(facts, shape)
    if request_bytes(facts, shape, limit) <= room:
        return limit
    low, high = 0, -(-limit // shape.block_tokens)
    while high - low > 1:
        middle = (low + high) // 2
        if request_bytes(facts, shape, middle * shape.block_tokens) <= room:
            low = middle
        else:
            high = middle
    return low * shape.block_tokens
