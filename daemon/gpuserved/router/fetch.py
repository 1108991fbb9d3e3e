"""One GET of an upstream, on a connection of its own: health checks, counters, lists of models."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gpuserved.host.deadline import within
from gpuserved.router.http.head import ResponseHead
from gpuserved.router.pool import ConnectFailed, connect


@dataclass(frozen=True)
class Fetched:
    """What came: `status` is None where nothing readable did, or more than was asked for."""

    status: int | None = None
    body: bytes = b""
    refused: bool = False
    """Nobody listens there."""


class _Keeps:
    """A sink that keeps an answer up to a size."""

    def __init__(self, body_max_bytes: int) -> None:
        self.done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self._body_max_bytes = body_max_bytes
        self._status: int | None = None
        self._body = bytearray()

    def _resolve(self, fetched: Fetched) -> None:
        if not self.done.done():
            self.done.set_result(fetched)

    def upstream_head(self, head: ResponseHead) -> None:
        self._status = head.status
        if not self._body_max_bytes:
            self._resolve(Fetched(head.status))

    def upstream_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._body_max_bytes:
            self._resolve(Fetched())

    def upstream_end(self) -> None:
        self._resolve(Fetched(self._status, bytes(self._body)))

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        self._resolve(Fetched())


async def fetch(address: str, path: str, timeout_s: float, *, body_max_bytes: int = 0) -> Fetched:
    """Ask once; never raises.

    :param address: `unix:PATH` or `tcp:HOST:PORT`.
    :param timeout_s: for the connection, and again for the answer.
    :param body_max_bytes: a longer answer counts as none; 0: the status is all that is wanted.
    """
    try:
        upstream = await connect(address, timeout_s)
    except ConnectFailed as error:
        return Fetched(refused=error.proof)
    sink = _Keeps(body_max_bytes)
    upstream.begin(sink)
    upstream.write(b"GET " + path.encode() + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    try:
        return await within(sink.done, timeout_s)
    except (asyncio.TimeoutError, TimeoutError):
        return Fetched()
    finally:
        upstream.detach()
        upstream.abort()
