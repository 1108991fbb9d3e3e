"""A small HTTP/1.1 server over asyncio and httptools, with uvicorn's manners: keep-alive for 5 s, one request at a time."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

KEEP_ALIVE_S = 5.0
"""vLLM's default, VLLM_HTTP_TIMEOUT_KEEP_ALIVE."""
UPGRADES = "/v1/realtime"
"""The one route that becomes a WebSocket."""
_HIGH_WATER_BYTES = 65536


@dataclass
class Request:
    """One request, read whole."""

    method: str = ""
    target: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True
    peer: str = ""

    @property
    def path(self) -> str:
        """Decoded, without query."""
        return unquote(self.target.partition("?")[0])


class Reply:
    """The way back to one client."""

    def __init__(self, connection: Connection, request: Request, service: Service) -> None:
        self._connection = connection
        self._request = request
        self._begun = service.begun
        self._stall_after = service.stall_after_bytes
        self.started_at = time.monotonic()
        self.status = 0
        self.body_bytes = 0

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        self.status = status
        self._begun(self._request, status)
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"date: {date}", "server: uvicorn"]
        lines += [f"{name}: {value}" for name, value in {**headers, "vary": "Origin"}.items()]
        if not self._request.keep_alive:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def send(
        self, status: int, body: bytes = b"", content_type: str | None = None, **extra: str
    ) -> None:
        """A whole answer."""
        headers = {"content-length": str(len(body)), **extra}
        if content_type:
            headers["content-type"] = content_type
        await self._write(self._head(status, headers), body)

    async def json(self, status: int, content: Any, **extra: str) -> None:
        """A whole JSON answer.

        :param extra: further headers.
        """
        await self.send(status, dumps(content).encode(), "application/json", **extra)

    async def start(self, content_type: str) -> None:
        """The head of a stream."""
        headers = {"content-type": content_type, "transfer-encoding": "chunked"}
        await self._write(self._head(200, headers), b"")

    async def chunk(self, data: bytes) -> None:
        """One chunk of a stream."""
        await self._write(b"%x\r\n" % len(data), data, b"\r\n")

    async def end(self) -> None:
        """The end of a stream."""
        await self._write(b"0\r\n\r\n", b"")

    def last(self) -> None:
        """The connection is not used again."""
        self._request.keep_alive = False

    async def raw(self, data: bytes) -> None:
        """Bytes as they are, the last ones of this connection."""
        self.last()
        await self._connection.write(data)

    def tunnel(self) -> asyncio.StreamReader:
        """What the client sends after its upgrade.

        :raises ConnectionResetError: it asked for none.
        """
        if self._connection.tunnel is None:
            raise ConnectionResetError
        return self._connection.tunnel

    def never_stalls(self) -> None:
        """Exempt this route from `--stall-after-bytes`."""
        self._stall_after = None

    async def _write(self, before: bytes, body: bytes, after: bytes = b"") -> None:
        if self._stall_after is not None and self.body_bytes + len(body) >= self._stall_after:
            await self._connection.write(before + body[: self._stall_after - self.body_bytes])
            self.body_bytes = self._stall_after
            await forever()
        self.body_bytes += len(body)
        await self._connection.write(before + body + after)


Handler = Callable[[Request, Reply], Awaitable[None]]


@dataclass
class Service:
    """What all connections of a server share."""

    handle: Handler
    begun: Callable[[Request, int], None]
    """Told of the status of each answer as it begins."""
    stall_after_bytes: int | None = None
    connections: set[Connection] = field(default_factory=set)
    stopping: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)

    def close_idle(self) -> None:
        """Refuse further requests; connections in use go on until their answer is complete."""
        self.stopping = True
        for connection in list(self.connections):
            connection.close_if_idle()
        if not self.connections:
            self.emptied.set()


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._current = Request()
        self._queue: deque[Request] = deque()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._peer = ""
        self.tunnel: asyncio.StreamReader | None = None
        """Set where the one route that offers an upgrade was asked for it."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        self._peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: what it waited for is aborted."""
        del exc
        self._service.connections.discard(self)
        if self._service.stopping and not self._service.connections:
            self._service.emptied.set()
        if self._task:
            self._task.cancel()
        self._writable.set()
        self._stop_idle_timer()
        if self.tunnel is not None:
            self.tunnel.feed_eof()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, or of what follows an upgrade."""
        if self.tunnel is not None:
            self.tunnel.feed_data(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An upgrade that is not offered is answered as the plain request it also is.
            if self._current.path == UPGRADES:
                self.tunnel = asyncio.StreamReader()
                self.tunnel.feed_data(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    # httptools

    def on_message_begin(self) -> None:
        """A request starts."""
        self._stop_idle_timer()
        self._current = Request(peer=self._peer)

    def on_url(self, url: bytes) -> None:
        """Its target, perhaps in pieces."""
        self._current.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._current.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._current.method = self._parser.get_method().decode()
        self._current.keep_alive = self._parser.should_keep_alive()
        if self._current.headers.get("expect", "").lower() == "100-continue" and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._current.body += body

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._queue.append(self._current)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # ours

    async def _serve(self) -> None:
        while self._queue and self._transport and not self._transport.is_closing():
            request = self._queue.popleft()
            reply = Reply(self, request, self._service)
            await self._service.handle(request, reply)
            if not request.keep_alive or self._service.stopping:
                self._transport.close()
        self._task = None
        if self._transport and not self._transport.is_closing():
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(KEEP_ALIVE_S, self._transport.close)

    async def write(self, data: bytes) -> None:
        """Send, waiting while the client's buffer is full."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(data)
        await self._writable.wait()

    def close_if_idle(self) -> None:
        """Close unless an answer is under way."""
        if self._task is None and self._transport:
            self._transport.close()

    def _refuse(self) -> None:
        if self._transport:
            text = b"Invalid HTTP request received."
            head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
            self._transport.write(head + b"content-length: %d\r\n\r\n" % len(text) + text)
            self._transport.close()

    def _stop_idle_timer(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
            self._idle_timer = None


async def forever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


def dumps(content: Any) -> str:
    """JSON as vLLM writes it."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
