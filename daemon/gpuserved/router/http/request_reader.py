"""Bytes of a client to whole requests, one at a time. Knows nothing of transports."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gpuserved.core.routes import Match
from gpuserved.router.http import errors
from gpuserved.router.http.body import MEMORY_MAX_BYTES, Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.framing import LINES_MAX, ChunkedDecoder, FramingError, LengthDecoder
from gpuserved.router.http.head import HEAD_MAX_BYTES, HeadMemo, RequestHead, parse_request

HEADER_S = 10.0
"""Absolute, from a head's first byte to its end; trickling bytes do not stretch it."""
BODY_STALL_S = 30.0
BODY_MIN_BYTES_PER_S = 1024
"""A body that is slower than this on average, after a grace of `BODY_STALL_S`, ends with 408."""

_CR = 13
_HEAD = b"HEAD "


class Screen(Protocol):
    """Who judges a request by its head."""

    def screen(self, head: RequestHead) -> Match:
        """:raises HttpError: refused by its head alone."""

    def body_max_bytes(self) -> int:
        """Longest body."""


class Whole(NamedTuple):
    """A whole request: to be served where `match` is set, else refused."""

    head: RequestHead
    body: Body
    match: Match | None
    refusal: HttpError | None


class RequestReader:
    """`feed` bytes, `advance` to the next whole request."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._heads = HeadMemo(parse_request, b"\r\nContent-Length: ")
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._match: Match | None = None
        self._refusal: HttpError | None = None
        self._body = Body()
        self._decoder: ChunkedDecoder | LengthDecoder | None = None
        self._body_max = 0
        self._body_since = 0.0
        self._clock_runs = False
        self.deadline: float | None = None
        """Loop time at which what has begun must have advanced; None: nothing has begun."""
        self._wants_continue = False
        self.head_only = False
        """The request that is being read, or was read last, is HEAD: its answer has no body, whatever it is."""
        self.has_more = False
        """`advance` stopped so as not to hold up the loop: call it again on the next turn."""

    def feed(self, data: bytes) -> None:
        """More bytes."""
        self._buffer += data

    def at_once(self, data: bytes) -> Whole | None:
        """A request that came whole in one read, with nothing before or after it; None: `feed` and `advance`.

        :raises HttpError: as `advance`.
        """
        if self._buffer or self._head is not None:
            return None
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > HEAD_MAX_BYTES or data[0] == _CR:
            return None
        self.head_only = data.startswith(_HEAD)
        head = self._heads.read(data[:end])
        size = len(data) - end
        if head.chunked or head.expects_continue or size != (head.content_length or 0):
            return None
        if size > MEMORY_MAX_BYTES:
            return None
        try:
            match, refusal = self._screen.screen(head), None
        except HttpError as error:
            match, refusal = None, error.with_traceback(None)  # else it holds this frame, which holds it
        body = Body()
        if size:
            body.append(data[end:])
        self._clock_runs = False
        self.deadline = None
        return Whole(head, body, match, refusal)

    @property
    def buffered_bytes(self) -> int:
        """What is not yet part of a request."""
        return len(self._buffer)

    @property
    def within_head(self) -> bool:
        """The head is not whole yet."""
        return self._head is None

    def clear(self) -> None:
        """Nothing of this matters any more."""
        self._buffer.clear()
        self._body.close()

    def take_rest(self) -> bytes:
        """The bytes after an upgrade's head."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def take_continue(self) -> bool:
        """The client waits for 100 Continue; said once."""
        wants, self._wants_continue = self._wants_continue, False
        return wants

    def advance(self, now: float) -> Whole | None:
        """The next whole request; None: more bytes are needed.

        :raises HttpError: not a request as we trust it, too large, or refused by its head.
        """
        if self._head is None and not self._read_head(now):
            return None
        if not self._read_body(now):
            return None
        assert self._head is not None
        whole = Whole(self._head, self._body, self._match, self._refusal)
        self._head = None
        self._body = Body()
        self.deadline = None
        return whole

    def _read_head(self, now: float) -> bool:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
        if not buffer:
            return False
        self.head_only = buffer.startswith(_HEAD)
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end + 4 > HEAD_MAX_BYTES:
            if len(buffer) > HEAD_MAX_BYTES:
                raise errors.head_too_large()
            if b"\n" in buffer.replace(b"\r\n", b""):
                raise errors.bad_request("Malformed request: a line end is not CRLF.", "malformed_request")
            if not self._clock_runs:
                self._clock_runs = True
                self.deadline = now + HEADER_S
            return False
        self._clock_runs = False
        raw = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._start_body(self._heads.read(raw), now)
        return True

    def _start_body(self, head: RequestHead, now: float) -> None:
        self._refusal = self._match = None
        self._body_max = self._screen.body_max_bytes()
        length = head.content_length or 0
        try:
            self._match = self._screen.screen(head)
        except HttpError as error:
            # A small body is read, so that the connection lives on and the answer is not lost to a reset.
            if head.chunked or head.expects_continue or length > MEMORY_MAX_BYTES:
                raise
            self._refusal = error.with_traceback(None)
        self._head = head
        self._body_since = now
        self._decoder = ChunkedDecoder() if head.chunked else LengthDecoder(length)
        self._wants_continue = head.expects_continue and not self._decoder.done and not self._buffer

    def _read_body(self, now: float) -> bool:
        decoder = self._decoder
        assert decoder is not None
        self.has_more = False
        if self._buffer and not decoder.done:
            try:
                if isinstance(decoder, ChunkedDecoder):
                    payload, used = decoder.feed(bytes(self._buffer), LINES_MAX)
                else:
                    payload, used = decoder.feed(bytes(self._buffer))
            except FramingError as error:
                raise errors.bad_request(f"Malformed request: {error}.", "malformed_request") from None
            del self._buffer[:used]
            if self._body.size + len(payload) > self._body_max:
                raise errors.too_large(self._body_max)
            try:
                self._body.append(payload)
            except OSError:
                raise errors.no_room() from None
        if not decoder.done:
            self.has_more = bool(self._buffer)
            slowest = self._body_since + self._body.size / BODY_MIN_BYTES_PER_S
            self.deadline = min(now, slowest) + BODY_STALL_S
        return decoder.done
