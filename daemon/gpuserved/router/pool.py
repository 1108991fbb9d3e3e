"""Connections to one replica, kept alive while they are fresh."""

from __future__ import annotations

import asyncio

from gpuserved.host.deadline import within
from gpuserved.router.upstream_connection import Upstream

CONNECT_TIMEOUT_S = 2.0
IDLE_MAX_S = 4.0
"""Below uvicorn's keep-alive of 5 s, which vLLM uses: the replica must never be the one that closes."""
IDLE_MAX = 256
_FULL_BACKLOG_WAIT_S = 0.02


class ConnectFailed(Exception):
    """No connection. `proof`: nobody listens there, so the replica is dead."""

    def __init__(self, why: str, *, proof: bool) -> None:
        super().__init__(why)
        self.proof = proof


async def _open(address: str) -> Upstream:
    loop = asyncio.get_running_loop()
    scheme, _, rest = address.partition(":")
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        _, upstream = await loop.create_connection(Upstream, host.strip("[]"), int(port))
        return upstream
    while True:
        try:
            _, upstream = await loop.create_unix_connection(Upstream, rest)
        except BlockingIOError:
            # EAGAIN: the listen backlog of a Unix socket is full. TCP would wait by itself.
            await asyncio.sleep(_FULL_BACKLOG_WAIT_S)
        else:
            return upstream


async def connect(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Upstream:
    """A new connection to `unix:PATH` or `tcp:HOST:PORT`.

    :raises ConnectFailed: refused, not there, or not within `timeout_s`.
    """
    try:
        return await within(_open(address), timeout_s, Upstream.abort)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise ConnectFailed(str(error), proof=True) from None
    except (asyncio.TimeoutError, TimeoutError):
        raise ConnectFailed(f"no connection within {timeout_s:g} s", proof=False) from None
    except (OSError, ValueError) as error:
        raise ConnectFailed(str(error), proof=False) from None


class Pool:
    """Idle connections of one replica, the most recently used first."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._idle: list[Upstream] = []
        self._closed = False

    def idle(self, now: float) -> Upstream | None:
        """A connection that stands ready, if one is fresh enough.

        :param now: monotonic seconds.
        """
        while self._idle:
            upstream = self._idle.pop()
            if upstream.closed or now - upstream.idle_since > IDLE_MAX_S:
                upstream.abort()
                continue
            return upstream
        return None

    async def take(self, now: float, *, fresh: bool = False) -> Upstream:
        """A connection, reused if one is fresh enough.

        :param now: monotonic seconds.
        :raises ConnectFailed: none could be made.
        """
        upstream = None if fresh else self.idle(now)
        return upstream if upstream is not None else await connect(self.address)

    def give_back(self, upstream: Upstream, now: float) -> None:
        """Keep a connection whose answer ended cleanly."""
        if self._closed or not upstream.reusable or len(self._idle) >= IDLE_MAX:
            upstream.abort()
            return
        upstream.park(now)
        self._idle.append(upstream)

    def sweep(self, now: float) -> None:
        """Close what has been idle too long."""
        keep: list[Upstream] = []
        for upstream in self._idle:
            if upstream.closed or now - upstream.idle_since > IDLE_MAX_S:
                upstream.abort()
            else:
                keep.append(upstream)
        self._idle = keep

    def close(self) -> None:
        """Close what is idle and keep nothing from now on."""
        self._closed = True
        for upstream in self._idle:
            upstream.abort()
        self._idle = []
