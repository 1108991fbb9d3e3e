"""The shortest way through the router, and the one of most bytes: a chunk that passes as the replica wrote it."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from gpuserved.router.http.framing import OPENINGS, WHOLE_MAX_BYTES, whole_chunks


class Passing(Protocol):
    """A client that takes whole chunks as the replica wrote them."""

    @property
    def between_events(self) -> bool:
        """Nothing of the answer is held back."""

    def chunk_ending(self) -> bytes:
        """How a chunk ends that cuts nothing in two."""

    def chunk_writer(self) -> Callable[[bytes], object]:
        """Takes a whole chunk, framing and all."""


class Passage(asyncio.Protocol):
    """Reads of a connection: whole chunks pass while they may, anything else is `arrived`.

    What each passing chunk reads and writes are three slots of one cache line: slots of a base class come first. With hundreds of
    streams, a connection is out of the processor's caches when its next chunk comes, and a chunk costs the lines it is spread over.
    """

    __slots__ = ("_ending", "_forward", "passed_bytes")

    def __init__(self) -> None:
        self._forward: Callable[[bytes], object] | None = None
        """Set while the next chunk may pass as it is."""
        self._ending = b""
        self.passed_bytes = 0
        """Of the present answer, by this way."""

    def data_received(self, data: bytes) -> None:
        """A read that is one whole chunk, or several, passes while that is allowed."""
        forward = self._forward
        if forward is not None:
            size = len(data)
            if data.endswith(self._ending) and (
                (size < WHOLE_MAX_BYTES and data.startswith(OPENINGS[size])) or whole_chunks(data)
            ):
                self.passed_bytes += size
                try:
                    forward(data)
                except (
                    RuntimeError
                ):  # uvloop's word for a client that has just gone; whoever serves it is about to hear
                    self._forward = None
                return
        self.arrived(data)

    @abstractmethod
    def arrived(self, data: bytes) -> None:
        """Bytes that do not pass as they are."""
