"""One try on one replica: holds what arrives until the exchange commits to it."""

from __future__ import annotations

import asyncio

from gpuserved.router.edge import ResponseHead
from gpuserved.router.protocol_upstream import Upstream
from gpuserved.router.relay import Relay
from gpuserved.router.sse import First, first_event, is_server_error

HELD_MAX_BYTES = 256 * 1024
"""More of an uncommitted answer than this is left in the socket."""


class Attempt:
    """The sink of one upstream connection."""

    __slots__ = ("_held", "_relay", "ended", "finished", "first", "head", "lost", "lost_why", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        self.upstream = upstream
        self.head: ResponseHead | None = None
        self.first: asyncio.Future[None] = loop.create_future()
        """Done when it is known what kind of answer this is."""
        self.finished: asyncio.Future[None] = loop.create_future()
        """Done when nothing more comes."""
        self.ended = False
        self.lost = False
        self.lost_why: str | None = None
        self._held = b""
        self._relay: Relay | None = None
        upstream.begin(self)

    def upstream_head(self, head: ResponseHead) -> None:
        """The head is held until the body begins."""
        self.head = head

    def upstream_body(self, data: bytes) -> None:
        """Held, or passed on once committed."""
        if self._relay is not None:
            self._relay.body(data)
            return
        self._held += data
        if len(self._held) > HELD_MAX_BYTES:
            self.upstream.pause_reading()
        if self.head is not None and self.head.sse and first_event(self._held) is First.UNCLEAR:
            return
        _done(self.first)

    def upstream_end(self) -> None:
        """The answer is whole."""
        self.ended = True
        _done(self.first)
        _done(self.finished)

    def upstream_lost(self, why: str | None) -> None:
        """The answer will never be whole."""
        self.lost = True
        self.lost_why = why
        _done(self.first)
        _done(self.finished)

    def upstream_full(self) -> None:
        """Never: no tunnel."""

    def upstream_ready(self) -> None:
        """Never: no tunnel."""

    def blames_server(self) -> bool:
        """A 5xx, or a stream that begins with an error that is the server's."""
        if self.head is None:
            return False
        if self.head.status >= 500:
            return self.head.status != 501
        return self.head.sse and first_event(self._held) is First.ERROR and is_server_error(self._held)

    def commit(self, relay: Relay, *, request_id: bytes, replica: bytes) -> None:
        """From here on everything goes to the client as it comes."""
        held, self._held = self._held, b""
        if len(held) > HELD_MAX_BYTES:
            self.upstream.resume_reading()
        self._relay = relay
        relay.start(held, request_id=request_id, replica=replica)

    def drop(self) -> None:
        """Nobody wants this answer: an engine still at work stops."""
        self.upstream.detach()
        if not self.ended:
            self.upstream.abort()


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
