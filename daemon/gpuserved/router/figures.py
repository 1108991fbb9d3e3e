"""What an engine says of its prefix cache: one GET of its Prometheus text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gpuserved.api.routing import CacheMetrics
from gpuserved.host.deadline import within
from gpuserved.router.http.head import ResponseHead
from gpuserved.router.pool import ConnectFailed, connect
from gpuserved.telemetry.metrics_text import CAP_BYTES, labels, read

TIMEOUT_S = 4.0


@dataclass(frozen=True)
class CacheFigures:
    """None: the engine does not say."""

    hits: float | None = None
    queries: float | None = None
    """Tokens since the engine started."""
    capacity_tokens: float | None = None


class _Page:
    """A sink that keeps a whole answer, up to a size."""

    def __init__(self) -> None:
        self.done: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._size = 0

    def _resolve(self, page: bytes | None) -> None:
        if not self.done.done():
            self.done.set_result(page)

    def upstream_head(self, head: ResponseHead) -> None:
        if head.status != 200:
            self._resolve(None)

    def upstream_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > CAP_BYTES:
            self._resolve(None)
        else:
            self._parts.append(data)

    def upstream_end(self) -> None:
        self._resolve(b"".join(self._parts))

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        self._resolve(None)

    def upstream_full(self) -> None:
        """Never: no tunnel."""

    def upstream_ready(self) -> None:
        """Never: no tunnel."""


async def cache_figures(address: str, names: CacheMetrics) -> CacheFigures | None:
    """Ask once, on a connection of its own; None: there was no good answer."""
    try:
        upstream = await connect(address, TIMEOUT_S)
    except ConnectFailed:
        return None
    sink = _Page()
    upstream.begin(sink)
    upstream.write(
        b"GET " + names.path.encode() + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    try:
        page = await within(sink.done, TIMEOUT_S)
    except (asyncio.TimeoutError, TimeoutError):
        page = None
    finally:
        upstream.detach()
        upstream.abort()
    return None if page is None else parse(page, names)


def parse(page: bytes, names: CacheMetrics) -> CacheFigures:
    """The figures in a page of Prometheus text."""
    found = read(page, frozenset({names.hits, names.queries}))
    sizes = [size for row in labels(page, names.config) if (size := _capacity(row)) is not None]
    return CacheFigures(found.get(names.hits), found.get(names.queries), sum(sizes) if sizes else None)


def _capacity(row: dict[str, str]) -> float | None:
    """Tokens that one engine keeps. vLLM says so itself from 0.30 on; before, and where it does not know, by its blocks."""
    for factors in (("kv_cache_size_tokens",), ("num_gpu_blocks", "block_size")):
        tokens = 1.0
        for name in factors:
            try:
                tokens *= float(row[name])
            except (KeyError, ValueError):
                break
        else:
            if 0 < tokens < float("inf"):
                return tokens
    return None
