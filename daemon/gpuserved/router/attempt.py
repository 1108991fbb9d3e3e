"""One try on one replica: holds what arrives until the exchange commits to it."""

from __future__ import annotations

from collections.abc import Callable

from gpuserved.router.http.head import ResponseHead
from gpuserved.router.http.sse import First, first_event, is_server_error
from gpuserved.router.response import Response
from gpuserved.router.upstream_connection import Upstream

HELD_MAX_BYTES = 256 * 1024
"""More of an uncommitted answer than this is left in the socket."""


class Attempt:
    """The sink of one upstream connection. Tells its exchange by two calls: what kind of answer this is, and its end."""

    __slots__ = (
        "_held", "_known", "_on_end", "_on_known", "_response", "ended", "head", "lost", "lost_why", "upstream",
    )  # fmt: skip

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.head: ResponseHead | None = None
        self.ended = False
        self.lost = False
        self.lost_why: str | None = None
        self._held = b""
        self._known = False
        self._on_known: Callable[[], object] | None = None
        self._on_end: Callable[[], object] | None = None
        self._response: Response | None = None
        upstream.begin(self)

    def when_known(self, call: Callable[[], object]) -> None:
        """Call once it is known what kind of answer this is, or that there is none; at once where it is."""
        if self._known:
            call()
        else:
            self._on_known = call

    def upstream_head(self, head: ResponseHead) -> None:
        """The head is held until the body begins."""
        self.head = head

    def upstream_body(self, data: bytes) -> None:
        """Held, or passed on once committed."""
        if self._response is not None:
            self._response.body(data)
            return
        self._held = self._held + data if self._held else data
        if len(self._held) > HELD_MAX_BYTES:
            self.upstream.pause_reading()
        if self.head is not None and self.head.sse and first_event(self._held) is First.UNCLEAR:
            return
        self._now_known()

    def upstream_end(self) -> None:
        """The answer is whole."""
        self.ended = True
        self._now_over()

    def upstream_lost(self, why: str | None) -> None:
        """The answer will never be whole."""
        self.lost = True
        self.lost_why = why
        self._now_over()

    def _now_known(self) -> None:
        self._known = True
        call, self._on_known = self._on_known, None
        if call is not None:
            call()

    def _now_over(self) -> None:
        call, self._on_end = self._on_end, None
        if call is not None:
            call()
        else:
            self._now_known()

    def blames_server(self) -> bool:
        """A 5xx, or a stream that begins with an error that is the server's."""
        if self.head is None:
            return False
        if self.head.status >= 500:
            return self.head.status != 501
        return self.head.sse and first_event(self._held) is First.ERROR and is_server_error(self._held)

    def commit(
        self, response: Response, on_end: Callable[[], object], *, request_id: bytes, replica: bytes
    ) -> None:
        """From here on everything goes to the client as it comes; `on_end` is called when nothing more does."""
        held, self._held = self._held, b""
        if len(held) > HELD_MAX_BYTES:
            self.upstream.resume_reading()
        self._response = response
        response.start(held, request_id=request_id, replica=replica)
        if self.ended or self.lost:
            on_end()
            return
        self._on_end = on_end
        self.upstream.pass_whole_chunks(response)

    def drop(self) -> None:
        """Nobody wants this answer: an engine still at work stops."""
        self._on_known = self._on_end = None
        self.upstream.detach()
        self.upstream.abort()
