"""One client connection: heads checked, bodies gathered, requests handed over one at a time."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import quote

from gpuserved.core.routes import Match
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import Headers, RequestHead, own_response
from gpuserved.router.http.request_reader import RequestReader, Screen, Whole

IDLE_S = 75.0
WRITE_STALL_S = 300.0
"""A client that takes nothing of its answer for this long is gone."""
LINGER_S = 2.0
AHEAD_MAX_BYTES = 64 * 1024
"""Pipelined bytes that are read while a request is served; reading goes on so that a client's leaving is seen."""
_READING, _BUSY, _FLUSHING, _TUNNEL, _LINGER, _CLOSED = range(6)
"""Flushing: an answer is whole, and more of it waits for the client than a transport takes; nothing begins before it has room."""

log = logging.getLogger(__name__)


class Work(Protocol):
    """What serves a client's request and writes to the client, and so is told when to wait."""

    def client_full(self) -> None:
        """The client reads too slowly."""

    def client_ready(self) -> None:
        """The client takes more."""

    def cancel(self) -> object:
        """The client is gone."""


class Tunnelled(Protocol):
    """Who takes a client's bytes after 101."""

    def client_data(self, data: bytes) -> None:
        """Bytes of the tunnel."""


class Front(Screen, Protocol):
    """What a connection needs of its router."""

    def begin(self, client: ClientConnection, head: RequestHead, body: Body, found: Match) -> None:
        """A whole request."""

    def opened(self, client: ClientConnection) -> bool:
        """False: over the cap."""

    def closed(self, client: ClientConnection) -> None:
        """Gone."""

    def refused(self, status: int) -> None:
        """A request was refused before it was whole."""

    def keeps_alive(self) -> bool:
        """False while draining."""


class ClientConnection(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.loop = asyncio.get_running_loop()
        self._phase = _READING
        self._reader = RequestReader(front)
        self._keep = True
        self._reading_paused = False
        self._writing_paused = False
        self._turn_due = False
        """What has been read goes on being worked on by `_go_on`, at the next turn of the loop."""
        self._flush_until = 0.0
        self._transport: asyncio.Transport | None = None
        self._work: Work | None = None
        self._tunnel: Tunnelled | None = None
        self.peer = "unknown"
        self.quoted_peer = b"unknown"
        """For X-Forwarded-For: an IPv6 zone may hold anything."""
        self.deadline = self.loop.time() + IDLE_S
        """Loop time at which `expire` is due; 0: never."""
        self._began = False
        """A byte of the present answer was written."""

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and peer:
            self.peer = str(peer[0])
            self.quoted_peer = quote(self.peer, safe=":.[]").encode()
        if not self._front.opened(self):
            self._refuse_and_close(errors.overloaded())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The client is gone: whatever runs for it stops now."""
        self._phase = _CLOSED
        self._front.closed(self)
        self._reader.clear()
        work, self._work, self._tunnel = self._work, None, None
        if work is not None:
            work.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client. An error of ours costs this connection alone."""
        try:
            if self._phase == _TUNNEL and self._tunnel is not None:
                self._tunnel.client_data(data)
            elif self._phase < _TUNNEL:
                reads = self._phase == _READING and not self._turn_due
                whole = self._reader.at_once(data) if reads else None
                if whole is not None:
                    self._hand_over(whole)
                    return
                self._reader.feed(data)
                if reads:
                    self._advance()
                elif self._reader.buffered_bytes > AHEAD_MAX_BYTES:
                    self.pause_reading()
        except HttpError as error:
            self._refuse_and_close(error)
        except Exception:
            log.exception("a client connection failed in the router")
            self.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._writing_paused = True
        self.deadline = self.loop.time() + WRITE_STALL_S
        if self._work is not None:
            self._work.client_full()

    def resume_writing(self) -> None:
        """The client takes more."""
        self._writing_paused = False
        if self._phase in {_BUSY, _TUNNEL}:
            self.deadline = 0.0
        if self._work is not None:
            self._work.client_ready()
        if self._phase == _FLUSHING:
            self._next()

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = 0.0
        if self._phase == _LINGER:
            self._end_linger()
        elif self._phase != _READING:
            self.abort()
        elif self._reader.deadline is None:
            self.close()
        else:
            self._refuse_and_close(errors.slow("head" if self._reader.within_head else "body"))

    def _advance(self) -> None:
        """Read on; hand over a request that is whole."""
        whole = self._reader.advance(self.loop.time())
        if self._reader.take_continue():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if whole is not None:
            self._hand_over(whole)
            if self._phase == _BUSY and self._reader.buffered_bytes <= AHEAD_MAX_BYTES:
                self.resume_reading()
            return
        self.deadline = self._reader.deadline or self.deadline
        if self._reader.has_more:
            self._work_on()
        else:
            self.resume_reading()

    def _work_on(self) -> None:
        """Read no more before what has been read is worked on, a share each turn of the loop: other clients have theirs, and what a
        client pipelines is left in its socket.
        """
        self.pause_reading()
        if not self._turn_due:
            self._turn_due = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """The share of this turn: a request, or some of a body in very small chunks."""
        self._turn_due = False
        if self._phase == _READING:
            self.data_received(b"")

    def _hand_over(self, whole: Whole) -> None:
        self._phase = _BUSY
        self.deadline = 0.0
        self._began = False
        self._keep = whole.head.keep_alive
        if whole.match is not None:
            self._front.begin(self, whole.head, whole.body, whole.match)
            return
        whole.body.close()
        error = whole.refusal or errors.internal()
        self._front.refused(error.status)
        self.refuse(error)

    def served_by(self, work: Work) -> None:
        """The present request is served by `work`."""
        self._work = work

    # Writing answers.

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write(self, data: bytes) -> None:
        """Bytes of the present answer."""
        self._began = True
        self._write(data)

    def writer(self) -> Callable[[bytes], object]:
        """Takes bytes of the present answer, once it has begun, with nothing in between."""
        return self._write if self._transport is None else self._transport.write

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer of the router itself."""
        keep = self._keep and self._front.keeps_alive()
        self.write(own_response(status, headers, body, close=not keep, head_only=self._reader.head_only))
        self.finished(keep_alive=keep)

    def refuse(self, error: HttpError, request_id: bytes | None = None) -> None:
        """The present request ends with this error; where its answer has begun, with an abort."""
        if self._began:
            self.abort()
            return
        headers = [(b"content-type", b"application/json"), *error.headers()]
        if request_id is not None:
            headers.append((b"x-request-id", request_id))
        self.respond(error.status, headers, error.body())

    def finished(self, *, keep_alive: bool) -> None:
        """The present answer is whole: on to the next request, or the end."""
        self._work = None
        if self._phase != _BUSY:
            return
        if not keep_alive:
            self._linger()
        elif self._writing_paused:
            self._phase = _FLUSHING
        else:
            self._next()

    def _next(self) -> None:
        """On to the next request."""
        self._phase = _READING
        self.deadline = self.loop.time() + IDLE_S
        if self._reader.buffered_bytes:
            self._work_on()
        else:
            self.resume_reading()

    def start_tunnel(self, tunnel: Tunnelled) -> None:
        """After 101: bytes go to `tunnel`."""
        self._phase = _TUNNEL
        self._tunnel = tunnel
        self.resume_reading()
        ahead = self._reader.take_rest()
        if ahead:
            tunnel.client_data(ahead)

    def _refuse_and_close(self, error: HttpError) -> None:
        """Answer what could not be understood, and end."""
        self._front.refused(error.status)
        headers = [(b"content-type", b"application/json"), *error.headers()]
        self._write(
            own_response(error.status, headers, error.body(), close=True, head_only=self._reader.head_only)
        )
        self._linger()

    def _linger(self) -> None:
        """Stop writing, read on for a moment: closing with unread bytes would reset the connection under our answer."""
        if self._phase == _CLOSED or self._transport is None:
            return
        self._phase = _LINGER
        self._reader.clear()
        self.resume_reading()
        now = self.loop.time()
        self.deadline = now + LINGER_S
        self._flush_until = now + WRITE_STALL_S
        if not self._transport.can_write_eof():  # TLS: its end goes out behind what is written
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def _end_linger(self) -> None:
        """Its moment has passed; a client that still has some of its answer to take gets as long as any other."""
        now = self.loop.time()
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() and now < self._flush_until:
            self.deadline = now + LINGER_S
        else:
            self._transport.abort()

    def idle(self) -> bool:
        """No request is being read or served."""
        return self._phase == _READING and self._reader.within_head and not self._reader.buffered_bytes

    def pause_reading(self) -> None:
        """Leave what the client sends in its socket."""
        if self._transport is not None and not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close once what is written has gone."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close with a reset, so that nobody takes what came for all there is."""
        if self._transport is None:
            return
        raw: socket.socket | None = self._transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            try:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                log.debug("connection already gone")
        self._transport.abort()
