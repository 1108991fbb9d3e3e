"""One connection to a replica: writes a request with back-pressure, reads one answer at a time for its sink."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from gpuserved.router.http.body import SLICE_BYTES, Body
from gpuserved.router.http.framing import (
    ChunkedDecoder,
    Decoder,
    EofDecoder,
    FramingError,
    decoder_for,
)
from gpuserved.router.http.head import (
    RESPONSE_HEAD_MAX_BYTES,
    BadAnswer,
    HeadMemo,
    ResponseHead,
    parse_response,
)
from gpuserved.router.passage import Passage, Passing

INTERIM_MAX = 16
"""More 1xx heads than this before the answer are no answer."""


class Sink(Protocol):
    """Who is told what arrives. After `upstream_end` or `upstream_lost` nothing more comes."""

    def upstream_head(self, head: ResponseHead) -> None:
        """The final head (1xx are skipped, but for 101)."""

    def upstream_body(self, data: bytes) -> None:
        """A piece of the body."""

    def upstream_end(self) -> None:
        """The body is whole."""

    def upstream_lost(self, why: str | None) -> None:
        """The connection ended early; `why` is set where the answer was malformed."""

    def upstream_full(self) -> None:
        """After 101: the replica takes no more for now."""

    def upstream_ready(self) -> None:
        """After 101: the replica takes more."""


class Upstream(Passage):
    """The protocol of one connection."""

    __slots__ = (
        "_decoder", "_head", "_head_bytes", "_heads", "_interim", "_passing", "_reading_paused", "_tunnel", "_upgrade", "_writable",
        "closed", "idle_since", "read_any", "reused", "sink", "spent", "transport",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.transport: asyncio.Transport | None = None
        self.sink: Sink | None = None
        self.closed = False
        self.reused = False
        self.read_any = False
        """A byte of the present answer was read."""
        self.spent = False
        """A request was not sent to its end: carries no other."""
        self.idle_since = 0.0
        self._head: ResponseHead | None = None
        self._head_bytes = b""
        self._decoder: Decoder | None = None
        self._tunnel = False
        self._upgrade = False
        self._interim = 0
        self._heads = HeadMemo(parse_response, b"\r\ncontent-length: ")
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading_paused = False
        self._passing: Passing | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def begin(self, sink: Sink, *, upgrade: bool = False) -> None:
        """Expect one answer, for `sink`. On a connection that has ended meanwhile the sink is told so at once: a replica that dies
        between our connect and the task that waited for it has nothing more to say.

        :param upgrade: 101 was asked for; else it is no answer.
        """
        self.sink = sink
        self._upgrade = upgrade
        self._interim = 0
        self.read_any = False
        self._head = None
        self._head_bytes = b""
        self._decoder = None
        self.passed_bytes = 0
        if self.closed:
            self._lose(None)

    def pass_whole_chunks(self, passing: Passing) -> None:
        """From here on a read that is one whole chunk goes to `passing` as it is; anything else to the sink."""
        self._passing = passing
        self._ending = passing.chunk_ending()
        self._settle()

    def _settle(self) -> None:
        """May the next chunk pass as it is?"""
        passing, decoder = self._passing, self._decoder
        if passing is not None:
            passes = isinstance(decoder, ChunkedDecoder) and decoder.between_chunks and passing.between_events
            self._forward = passing.chunk_writer() if passes else None

    def detach(self) -> None:
        """The sink has gone: hear nothing more of this answer."""
        self._take_sink()

    def _take_sink(self) -> Sink | None:
        sink, self.sink = self.sink, None
        self._passing = self._forward = None
        return sink

    @property
    def reusable(self) -> bool:
        """May carry another request."""
        whole = self._head is not None and self._head.keep_alive and self.sink is None
        return whole and not self.closed and not self.spent

    def write(self, data: bytes) -> None:
        """Write without waiting; for heads and tunnels."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    async def send(self, head: bytes, body: Body) -> None:
        """Write a request. Returns early where the connection ends: its sink hears of that."""
        size = body.size
        if size <= SLICE_BYTES:
            self.write(head + body.view() if size else head)
            return
        self.write(head)
        view = body.view()
        for start in range(0, size, SLICE_BYTES):
            await self._writable.wait()
            if self.closed:
                return
            self.write(view[start : start + SLICE_BYTES])

    def pause_writing(self) -> None:
        """The transport is full."""
        self._writable.clear()
        if self._tunnel and self.sink is not None:
            self.sink.upstream_full()

    def resume_writing(self) -> None:
        """The transport takes more."""
        self._writable.set()
        if self._tunnel and self.sink is not None:
            self.sink.upstream_ready()

    def pause_reading(self) -> None:
        """The client takes no more for now."""
        if self.transport is not None and not self._reading_paused and not self.closed:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client takes more."""
        if self.transport is not None and self._reading_paused and not self.closed:
            self._reading_paused = False
            self.transport.resume_reading()

    def arrived(self, data: bytes) -> None:
        """Bytes of the answer that do not pass as they are."""
        if self.sink is None:
            self.abort()
            return
        self.read_any = True
        try:
            if self._tunnel:
                self.sink.upstream_body(data)
            elif self._decoder is None:
                self._read_head(self._head_bytes + data)
            else:
                self._read_body(data)
        except (BadAnswer, FramingError) as error:
            self._lose(str(error))

    def _read_head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > RESPONSE_HEAD_MAX_BYTES:
            if len(data) > RESPONSE_HEAD_MAX_BYTES:
                raise BadAnswer("its head is too large")
            if not b"HTTP/1."[: len(data)] == data[:7]:
                raise BadAnswer("no status line")
            self._head_bytes = data
            return
        head = self._heads.read(data[: end + 4])
        rest = data[end + 4 :]
        self._head_bytes = b""
        if head.status < 200 and head.status != 101:
            self._interim += 1
            if self._interim > INTERIM_MAX:
                raise BadAnswer("too many interim heads")
            if rest:
                self._read_head(rest)
            return
        if head.status == 101 and not self._upgrade:
            raise BadAnswer("an upgrade nobody asked for")
        assert self.sink is not None
        self._head = head
        if head.status == 101:
            self._tunnel = True
            self._decoder = EofDecoder()
            self.sink.upstream_head(head)
            if rest:
                self.sink.upstream_body(rest)
            return
        self._decoder = decoder_for(head.content_length, chunked=head.chunked)
        self.sink.upstream_head(head)
        if rest or self._decoder.done:
            self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        payload, used = decoder.feed(data)
        if payload and self.sink is not None:
            self.sink.upstream_body(payload)
        if decoder.done:
            sink = self._take_sink()
            if used < len(data):
                self.abort()
            if sink is not None:
                sink.upstream_end()
        elif self._passing is not None:
            self._settle()

    def _lose(self, why: str | None) -> None:
        sink = self._take_sink()
        self.abort()
        if sink is not None:
            sink.upstream_lost(why)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by either side."""
        self.closed = True
        self._writable.set()
        sink = self._take_sink()
        if sink is None:
            return
        if exc is None and isinstance(self._decoder, EofDecoder):
            sink.upstream_end()
        else:
            sink.upstream_lost(None)

    def abort(self) -> None:
        """Close at once; an engine that was working for this connection stops."""
        self.closed = True
        self._writable.set()
        if self.transport is not None:
            self.transport.abort()
