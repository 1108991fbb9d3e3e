"""One GET of a replica's health check."""

from __future__ import annotations

import asyncio
from enum import Enum

from gpuserved.host.deadline import within
from gpuserved.router.http.head import ResponseHead
from gpuserved.router.pool import ConnectFailed, connect


class Health(Enum):
    """What a health check says."""

    OK = "ok"
    FAILING = "failing"
    """503: the engine behind it is dead (vLLM answers so between the engine's death and its own exit)."""
    REFUSED = "refused"
    """Nobody listens."""
    UNCLEAR = "unclear"


class _Status:
    """A sink that wants the status alone."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def _resolve(self, status: int | None) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def upstream_head(self, head: ResponseHead) -> None:
        self._resolve(head.status)

    def upstream_body(self, data: bytes) -> None:
        """Of no interest."""

    def upstream_end(self) -> None:
        """Of no interest."""

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        self._resolve(None)

    def upstream_full(self) -> None:
        """Never: no tunnel."""

    def upstream_ready(self) -> None:
        """Never: no tunnel."""


async def check(address: str, path: str, timeout_s: float) -> Health:
    """Ask once, on a connection of its own; never raises."""
    try:
        upstream = await connect(address, timeout_s)
    except ConnectFailed as error:
        return Health.REFUSED if error.proof else Health.UNCLEAR
    sink = _Status()
    upstream.begin(sink)
    upstream.write(b"GET " + path.encode() + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    try:
        status = await within(sink.status, timeout_s)
    except (asyncio.TimeoutError, TimeoutError):
        status = None
    finally:
        upstream.detach()
        upstream.abort()
    if status == 200:
        return Health.OK
    return Health.FAILING if status == 503 else Health.UNCLEAR
