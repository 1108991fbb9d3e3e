"""One connection to a replica: writes a request with back-pressure, reads one answer at a time for its sink."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol, cast

from gpuserved.router.http.body import SLICE_BYTES, Body
from gpuserved.router.http.framing import (
    OPENINGS,
    WHOLE_MAX_BYTES,
    ChunkedDecoder,
    Decoder,
    EofDecoder,
    FramingError,
    decoder_for,
    whole_chunks,
)
from gpuserved.router.http.head import (
    RESPONSE_HEAD_MAX_BYTES,
    BadAnswer,
    HeadMemo,
    ResponseHead,
    parse_response,
)

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


class TunnelSink(Sink, Protocol):
    """A sink that writes to the replica as long as the connection lasts, and is told when to wait."""

    def upstream_full(self) -> None:
        """The replica takes no more for now."""

    def upstream_ready(self) -> None:
        """The replica takes more."""


class Passing(Protocol):
    """A client that takes whole chunks as the replica wrote them."""

    @property
    def between_events(self) -> bool:
        """Nothing of the answer is held back."""

    def chunk_ending(self) -> bytes:
        """How a chunk ends that cuts nothing in two."""

    def chunk_writer(self) -> Callable[[bytes], object]:
        """Takes a whole chunk, framing and all."""


class _PassesChunks(asyncio.Protocol):
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


class Upstream(_PassesChunks):
    """The protocol of one connection."""

    __slots__ = (
        "_decoder", "_head", "_head_bytes", "_heads", "_interim", "_passing", "_reading_paused", "_sending", "_sink", "_transport",
        "_tunnel", "_upgrade", "_writable", "closed", "idle_since", "read_any", "reused",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self.closed = False
        self.reused = False
        """It has carried another request before the present one."""
        self.read_any = False
        """A byte of the present answer was read."""
        self.idle_since = 0.0
        """Loop time, of one that is parked."""
        self._sending = False
        """A request is not sent to its end: until then it carries no other."""
        self._head: ResponseHead | None = None
        self._head_bytes = b""
        self._decoder: Decoder | None = None
        self._upgrade: TunnelSink | None = None
        self._tunnel: TunnelSink | None = None
        """Set after 101."""
        self._interim = 0
        self._heads = HeadMemo(parse_response, b"\r\ncontent-length: ")
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading_paused = False
        self._passing: Passing | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def begin(self, sink: Sink, *, upgrade: TunnelSink | None = None) -> None:
        """Expect one answer, for `sink`. On a connection that has ended meanwhile the sink is told so at once: a replica that dies
        between our connect and the task that waited for it has nothing more to say.

        :param upgrade: who takes the connection over after 101; None: 101 was not asked for and is no answer.
        """
        self.reused = self._head is not None
        self._sink = sink
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
        sink, self._sink = self._sink, None
        self._passing = self._forward = self._tunnel = None
        return sink

    @property
    def reusable(self) -> bool:
        """May carry another request."""
        whole = self._head is not None and self._head.keep_alive and self._sink is None
        return whole and not self.closed and not self._sending

    def write(self, data: bytes) -> None:
        """Write without waiting; for heads and tunnels."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def send(self, head: bytes, body: Body) -> None:
        """Write a request. Returns early where the connection ends: its sink hears of that. One that is cancelled on the way leaves
        the connection unfit for another.
        """
        size = body.size
        if size <= SLICE_BYTES:
            self.write(head + body.view() if size else head)
            return
        self._sending = True
        self.write(head)
        view = body.view()
        for start in range(0, size, SLICE_BYTES):
            await self._writable.wait()
            if self.closed:
                return
            self.write(view[start : start + SLICE_BYTES])
        self._sending = False

    def park(self, now: float) -> None:
        """Between two requests from now on (loop time)."""
        self.resume_reading()
        self.idle_since = now

    def pause_writing(self) -> None:
        """The transport is full."""
        self._writable.clear()
        if self._tunnel is not None:
            self._tunnel.upstream_full()

    def resume_writing(self) -> None:
        """The transport takes more."""
        self._writable.set()
        if self._tunnel is not None:
            self._tunnel.upstream_ready()

    def pause_reading(self) -> None:
        """The client takes no more for now."""
        if self._transport is not None and not self._reading_paused and not self.closed:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The client takes more."""
        if self._transport is not None and self._reading_paused and not self.closed:
            self._reading_paused = False
            self._transport.resume_reading()

    def arrived(self, data: bytes) -> None:
        """Bytes of the answer that do not pass as they are."""
        if self._sink is None:
            self.abort()
            return
        self.read_any = True
        try:
            if self._tunnel is not None:
                self._sink.upstream_body(data)
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
        if head.status == 101 and self._upgrade is None:
            raise BadAnswer("an upgrade nobody asked for")
        assert self._sink is not None
        self._head = head
        if head.status == 101:
            self._tunnel = self._upgrade
            self._decoder = EofDecoder()
            self._sink.upstream_head(head)
            if rest:
                self._sink.upstream_body(rest)
            return
        self._decoder = decoder_for(head.content_length, chunked=head.chunked)
        self._sink.upstream_head(head)
        if rest or self._decoder.done:
            self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        payload, used = decoder.feed(data)
        if payload and self._sink is not None:
            self._sink.upstream_body(payload)
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
        if self._transport is not None:
            self._transport.abort()
