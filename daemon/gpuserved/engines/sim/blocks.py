"""The KV cache: fixed blocks, full ones kept under the hash of everything before them, the oldest free one reused first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

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
