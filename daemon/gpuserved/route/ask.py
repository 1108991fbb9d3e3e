"""One GET of an upstream, on a connection of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gpuserved.core.upstream import Check
from gpuserved.host.deadline import within
from gpuserved.router.http.head import ResponseHead
from gpuserved.router.pool import ConnectFailed, connect

_BODY_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """What came: `status` is None where nothing readable did."""

    status: int | None = None
    body: bytes = b""
    refused: bool = False

    @property
    def check(self) -> Check:
        """As a health check."""
        if self.status == 200:
            return Check.OK
        if self.status is not None:
            return Check.FAILING
        return Check.REFUSED if self.refused else Check.SILENT


class _Whole:
    """A sink that keeps the answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._status: int | None = None
        self._body = b""

    def _resolve(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)

    def upstream_head(self, head: ResponseHead) -> None:
        self._status = head.status

    def upstream_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > _BODY_MAX_BYTES:
            self._resolve(Answer())

    def upstream_end(self) -> None:
        self._resolve(Answer(self._status, self._body))

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        self._resolve(Answer())

    def upstream_full(self) -> None:
        """Never: no tunnel."""

    def upstream_ready(self) -> None:
        """Never: no tunnel."""


async def get(address: str, path: str, timeout_s: float) -> Answer:
    """Ask once; never raises."""
    try:
        upstream = await connect(address, timeout_s)
    except ConnectFailed as error:
        return Answer(refused=error.proof)
    sink = _Whole()
    upstream.begin(sink)
    upstream.write(
        b"GET "
        + path.encode()
        + b" HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\nconnection: close\r\n\r\n"
    )
    try:
        return await within(sink.done, timeout_s)
    except (asyncio.TimeoutError, TimeoutError):
        return Answer()
    finally:
        upstream.detach()
        upstream.abort()
