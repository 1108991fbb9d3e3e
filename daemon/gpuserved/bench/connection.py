"""One HTTP/1.1 connection that notes the moment of every piece it reads."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from gpuserved.host.deadline import within

CONNECT_TIMEOUT_S = 10.0


@dataclass
class Reply:
    """What came back, as it comes."""

    status: int = 0
    replica: str | None = None
    sse: bool = False
    body: bytearray = field(default_factory=bytearray)
    """Not yet read as events; all of it where the answer is no stream."""
    events: list[tuple[float, bytes]] = field(default_factory=list)
    """(clock, data) of every server-sent event."""
    whole: bool = False
    keep_alive: bool = False


class Connection(asyncio.Protocol):
    """Carries one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._reply = Reply()
        self._done: asyncio.Future[Reply] | None = None
        self._read_at = 0.0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a request. The future ends with the reply, whole or not; it never raises."""
        self._reply = Reply()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        if self.closed or self._transport is None:
            self._finish()
        else:
            self._transport.write(request)
        assert self._done is not None
        return self._done

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of the reply."""
        self._read_at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, AttributeError):
            self.close()
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """The other side hung up."""
        self.closed = True
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self._reply)

    # httptools' callbacks.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        low = name.lower()
        if low == b"x-gpuserve-replica":
            self._reply.replica = value.decode("latin-1")
        elif low == b"content-type":
            self._reply.sse = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        reply = self._reply
        reply.body += body
        if not reply.sse:
            return
        while (end := reply.body.find(b"\n\n")) >= 0:
            block = bytes(reply.body[:end])
            del reply.body[: end + 2]
            data = b"\n".join(line[5:].lstrip() for line in block.split(b"\n") if line.startswith(b"data:"))
            if data:
                reply.events.append((self._read_at, data))

    def on_message_complete(self) -> None:
        """The reply is whole."""
        self._reply.whole = True
        self._reply.keep_alive = bool(self._parser.should_keep_alive())
        self._finish()


async def connect(address: str) -> Connection:
    """Connect to `tcp:HOST:PORT` or `unix:PATH`.

    :raises OSError: it did not work; TimeoutError where it took too long.
    """
    loop = asyncio.get_running_loop()
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        opening = loop.create_unix_connection(Connection, rest)
    else:
        host, _, port = rest.rpartition(":")
        opening = loop.create_connection(Connection, host.strip("[]"), int(port))
    try:
        _, connection = await within(opening, CONNECT_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise TimeoutError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
    return connection
