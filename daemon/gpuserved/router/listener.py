"""Taking connections from a listening socket that several routers share, so that each gets its part.

The kernel wakes all of them for each connection, and the quickest takes it: the idle one, or always the same one. Few keep-alive
connections then sit on one router. So a router that has more clients than another lets that one go first: it stops listening for
`YIELD_S`, looks again, and after `YIELDS_MAX` times takes one whatever the others did: a router that hangs delays connections and
stops none.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable

from gpuserved.api.routing import Tls
from gpuserved.router.counts import Counts
from gpuserved.router.http.request_reader import HEADER_S

YIELD_S = 0.002
YIELDS_MAX = 5
"""10 ms in all: on a busy machine a router that was woken may not run sooner."""
_SLACK = 8
"""An eighth more than the least is no reason to wait: 1.125 times the least is within 1.3 times the mean."""

_RESERVED = 128
"""For the control socket, the shims, health checks and logs."""
_PER_REQUEST = 2
"""Beside the client's own: the replica's, and a spooled body's."""

log = logging.getLogger(__name__)


class Acceptor:
    """Takes connections one at a time."""

    def __init__(
        self,
        sock: socket.socket,
        counts: Counts,
        factory: Callable[[], asyncio.Protocol],
        clients: Callable[[], int],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Take connections from now on; `clients` says how many there are. `sock` is the acceptor's to close."""
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._counts = counts
        self._factory = factory
        self._clients = clients
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._yields = 0
        self._loop.add_reader(self._sock, self._ready)

    def close(self) -> None:
        """Take no more; what waits in the socket is for the others."""
        self._loop.remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()

    def _mine(self) -> int:
        return self._clients() + len(self._opening)

    def _ready(self) -> None:
        fewest = self._counts.fewest_elsewhere()
        if self._yields < YIELDS_MAX and fewest is not None and self._mine() > fewest + fewest // _SLACK:
            self._yields += 1
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(YIELD_S, self._listen_again)
            return
        self._yields = 0
        self._take()

    def _listen_again(self) -> None:
        self._loop.add_reader(self._sock, self._ready)

    def _take(self) -> None:
        try:
            client, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("no connection can be taken: %s", error)  # noqa: TRY400 - the reason is in the error
            return
        task = self._loop.create_task(self._open(client))
        self._opening.add(task)
        task.add_done_callback(self._opened)
        self._counts.connections(self._mine())

    async def _open(self, client: socket.socket) -> None:
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._factory, client, ssl=self._tls, ssl_handshake_timeout=_handshake_s(self._tls)
            )
        except OSError as error:
            log.debug("a client left before it was served: %s", error)
            client.close()

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._counts.connections(self._mine())


def _handshake_s(tls: ssl.SSLContext | None) -> float | None:
    return None if tls is None else HEADER_S


async def listen(
    sock: socket.socket,
    counts: Counts | None,
    factory: Callable[[], asyncio.Protocol],
    clients: Callable[[], int],
    *,
    tls: ssl.SSLContext | None,
) -> asyncio.AbstractServer | Acceptor:
    """Take connections: from a socket of one's own without more ado, from one that is shared in turn.

    :param sock: its own descriptor, closed with what is returned.
    :param clients: how many this router has.
    """
    if counts is not None:
        return Acceptor(sock, counts, factory, clients, tls)
    return await asyncio.get_running_loop().create_server(
        factory, sock=sock, backlog=4096, ssl=tls, ssl_handshake_timeout=_handshake_s(tls)
    )


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 and newer, HTTP/1.1.

    :raises OSError: the files cannot be read; :raises ssl.SSLError: they are no certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.cert, tls.key)
    return context


class Certificates:
    """The port's present certificate. What cannot be loaded changes nothing."""

    def __init__(self) -> None:
        self.context: ssl.SSLContext | None = None

    def take(self, tls: Tls | None) -> bool:
        """Use these files, as they are now. True: the port changes between plain and TLS, and must be opened anew; a renewed
        certificate is used for new connections as it is.
        """
        before = self.context is not None
        if tls is None:
            self.context = None
            return before
        try:
            fresh = server_context(tls)
            if self.context is not None:
                self.context.load_cert_chain(tls.cert, tls.key)
            else:
                self.context = fresh
        except (OSError, ssl.SSLError) as error:
            log.error("the certificate %s is not used: %s", tls.cert, error)  # noqa: TRY400 - the reason says it all
        return (self.context is not None) != before


def enough(limit: int, *, connections: int, requests: int) -> bool:
    """Are there descriptors for so many clients and requests?"""
    return connections + _PER_REQUEST * requests <= limit - _RESERVED


def raise_limit() -> int:
    """All file descriptors we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
