"""Routers of one machine tell each other which prompts they sent where, so that each has a whole picture of every prefix cache.

A client's next request may be taken by any router. A router that knew its own choices alone would find the conversation's replica
in one case of N (measured: 66 % of the tokens cached with 4 routers, 92 % when they tell each other; docs/performance.md).

Each router writes a ring of its own, a file beside its control socket that the others map: no lock, no system call per request. What a
reader finds half written or overwritten is at worst a digest that matches nothing. A router that is started again reads its own ring
and the others', and so knows at once what its predecessor knew.

Ring: u64 bytes written so far, then RING_BYTES of records. A record, never across the end: u64 its position, u32 its length, u32 the
replica's generation, u64 its identity, f64 when (CLOCK_MONOTONIC, which all processes share), u64 the prompt's size, then (8 bytes digest, u32 end) for each block. Little endian.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpuserved.core.policy.prefix_key import PrefixKey

RING_BYTES = 1 << 20
"""About 1,500 conversations of some thousand tokens."""
_SLACK = 1 / 16
"""A reader within this part of a lap of being overtaken gives up its place: the writer writes before it counts."""
MAP_BYTES = 8 + RING_BYTES
SUFFIX = ".prompts"
_WRITTEN = struct.Struct("<Q")
_HEAD = struct.Struct("<QIIQdQ")
_BLOCK = struct.Struct("<8sI")

log = logging.getLogger(__name__)


class Note(NamedTuple):
    """A prompt went to a replica."""

    identity: int
    generation: int
    key: PrefixKey
    sent_at: float


class Ring:
    """One router's notes."""

    def __init__(self, shared: mmap.mmap) -> None:
        self._map = shared
        self._size = len(shared) - _WRITTEN.size
        self._reach = int(self._size * (1 - _SLACK))
        self._read = max(0, self._written - self._reach)

    @property
    def _written(self) -> int:
        return int(_WRITTEN.unpack_from(self._map, 0)[0])

    def write(self, identity: int, generation: int, key: PrefixKey, now: float) -> None:
        """Note that this prompt went to this replica. The counter moves last."""
        length = _HEAD.size + _BLOCK.size * len(key.blocks)
        at = self._written
        left = self._size - at % self._size
        if left < length:
            if left >= _HEAD.size:
                _HEAD.pack_into(self._map, _WRITTEN.size + at % self._size, at, left, 0, 0, 0.0, 0)
            at += left
        blocks = b"".join(map(_BLOCK.pack, key.blocks, key.ends))
        record = _HEAD.pack(at, length, generation, identity, now, key.size_bytes) + blocks
        start = _WRITTEN.size + at % self._size
        self._map[start : start + length] = record
        _WRITTEN.pack_into(self._map, 0, at + length)
        self._read = at + length

    def read(self) -> Iterator[Note]:
        """Each note since the last call. One that was overtaken is left out."""
        while True:
            written = self._written
            if not 0 <= written - self._read <= self._reach:
                self._read = written
            left = self._size - self._read % self._size
            if self._read >= written:
                return
            if left < _HEAD.size:
                self._read += left
                continue
            start = _WRITTEN.size + self._read % self._size
            at, length, generation, identity, sent_at, size = _HEAD.unpack_from(self._map, start)
            if at != self._read or not _HEAD.size <= length <= left:
                self._read = self._next(written)
                continue
            data = self._map[start + _HEAD.size : start + length - (length - _HEAD.size) % _BLOCK.size]
            self._read += length
            if size and self._written - at <= self._reach:
                blocks = list(_BLOCK.iter_unpack(data))
                ends = tuple(end for _, end in blocks)
                if all(a < b for a, b in zip((0, *ends), ends, strict=False)):
                    key = PrefixKey(tuple(digest for digest, _ in blocks), ends, size)
                    yield Note(identity, generation, key, sent_at)

    def _next(self, written: int) -> int:
        """Where to go on after a place that holds no record: the oldest of a ring that has gone round begins in its middle."""
        start = self._read - self._read % self._size + self._size
        return min(start, written)

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def _open(path: Path) -> Ring:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # A page that a full disk cannot give to a mapping later would be SIGBUS.
        os.posix_fallocate(handle, 0, MAP_BYTES)
        return Ring(mmap.mmap(handle, MAP_BYTES))
    finally:
        os.close(handle)


class Peers:
    """The router's own ring, and those of the routers beside it."""

    def __init__(self, control_path: str) -> None:
        self._own = Path(control_path + SUFFIX)
        self._rings: dict[Path, Ring] = {}
        self._writes: Ring | None = None
        self._troubled = False

    def find(self) -> None:
        """Map what is new and let go of what is gone. Without a ring (a full disk) a router goes on alone."""
        there = set(self._own.parent.glob("*" + SUFFIX))
        for path in self._rings.keys() - there:
            ring = self._rings.pop(path)
            if ring is self._writes:
                self._writes = None
            ring.close()
        try:
            if self._writes is None:
                self._writes = self._rings[self._own] = _open(self._own)
            for path in there - self._rings.keys():
                self._rings[path] = _open(path)
        except OSError as error:
            if not self._troubled:
                log.warning("prompts are not shared with other routers: %s", error)
            self._troubled = True
        else:
            self._troubled = False

    def tell(self, identity: int, generation: int, key: PrefixKey, now: float) -> None:
        """A prompt goes to a replica."""
        if self._writes is not None:
            self._writes.write(identity, generation, key, now)

    def hear(self) -> Iterator[Note]:
        """What others told since the last call; the first time also what this router's predecessor did."""
        for ring in self._rings.values():
            yield from ring.read()

    def close(self) -> None:
        """Unmap all."""
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        self._writes = None
