"""A WebSocket: upgraded on one replica, then bytes both ways until either side ends."""

from __future__ import annotations

import asyncio
import logging

from gpuserved.core.balance import Signal
from gpuserved.router import params
from gpuserved.router.admission import Asked
from gpuserved.router.client_connection import ClientConnection
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import ResponseHead, client_response, upstream_request
from gpuserved.router.model import Lease
from gpuserved.router.pool import ConnectFailed
from gpuserved.router.replica import Replica
from gpuserved.router.request import Request
from gpuserved.router.tries import UNREACHABLE_PAUSE_S
from gpuserved.router.upstream_connection import Upstream

UPGRADE_S = 30.0

log = logging.getLogger(__name__)


class Tunnel:
    """One upgraded connection, from its request to its end; the sink of its upstream and the tunnel of its client."""

    def __init__(self, context: Context, client: ClientConnection, request: Request) -> None:
        self._context = context
        self._client = client
        self._request = request
        self._loop = client.loop
        self._status = 499
        self._asked: Asked | None = None
        self._upstream: Upstream | None = None
        self._replica_id = b""
        self._open = False
        """101 has been passed on."""
        self._answered: asyncio.Future[int | None] = self._loop.create_future()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve it in a task of its own."""
        self._context.in_flight.begin(self._request.id, self)
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        """Its client left."""
        if self._task is not None:
            self._task.cancel()

    def give_up(self) -> None:
        self.cancel()

    async def _run(self) -> None:
        try:
            self._asked = self._context.admission.read_upgrade(self._request)
            self._status = await self._serve(self._asked)
        except HttpError as error:
            self._status = error.status
            self._client.refuse(error, self._request.id)
        except Exception:
            log.exception("tunnel %s failed in the router", self._request.id.decode())
            self._status = 500
            self._client.refuse(errors.internal(), self._request.id)

    def _over(self, _task: asyncio.Task[None]) -> None:
        """Give everything back."""
        if self._upstream is not None:
            self._upstream.detach()
            self._upstream.abort()
        self._context.in_flight.end(self._request.id)
        self._context.metrics.ended("" if self._asked is None else self._asked.model.name, self._status)

    async def _serve(self, asked: Asked) -> int:
        request, model = self._request, asked.model
        avoid = frozenset[Replica]()
        again = False
        since = self._loop.time()
        while True:
            lease = await model.lease(
                ask=asked.ask, avoid=avoid, deadline=request.deadline, again=again, tenant=request.tenant
            )
            try:
                if await self._connect(lease):
                    return await self._through(lease)
            finally:
                lease.release()
            avoid |= {lease.replica}
            again = True
            if self._loop.time() - since > model.queue_timeout_s:
                raise errors.none_ready(model.name)
            if not model.other_ready(avoid):
                await asyncio.sleep(UNREACHABLE_PAUSE_S)

    async def _connect(self, lease: Lease) -> bool:
        """False: nothing was sent, another replica may do."""
        try:
            self._upstream = await lease.replica.pool.take(self._loop.time(), fresh=True)
        except ConnectFailed as error:
            lease.replica.failed(Signal.DEAD if error.proof else Signal.UNREACHABLE, "connect")
            return False
        return True

    async def _through(self, lease: Lease) -> int:
        """From the upgrade to the end of the tunnel; the status the client got.

        :raises HttpError: the replica did not upgrade.
        """
        upstream, request = self._upstream, self._request
        assert upstream is not None
        self._replica_id = lease.replica.wire_id
        target = request.head.target
        if lease.upstream_model is not None:
            query = params.query_with_model(request.head.query, lease.upstream_model)
            target = f"{request.head.path}?{query}".encode()
        upstream.begin(self, upgrade=self)
        head = upstream_request(
            request.head, target=target, content_length=None, request_id=request.id, peer=request.forwarded_for,
            upgrade=True,
        )  # fmt: skip
        await upstream.send(head, Body())
        await asyncio.wait({self._answered}, timeout=UPGRADE_S)
        status = self._answered.result() if self._answered.done() else None
        if status is None:
            lease.replica.closed_early()
            raise errors.replica_failed("it did not upgrade the connection")
        if status != 101:
            raise errors.upgrade_refused(status)
        lease.replica.answered()
        await self._finished
        self._client.close()
        return 101

    # The replica's side.

    def upstream_head(self, head: ResponseHead) -> None:
        if head.status == 101:
            framing = b"connection: upgrade\r\nupgrade: websocket\r\n"
            self._open = True
            self._client.write(
                client_response(
                    head, framing=framing, request_id=self._request.id, replica=self._replica_id, close=False
                )
            )
            self._client.start_tunnel(self)
        if not self._answered.done():
            self._answered.set_result(head.status)

    def upstream_body(self, data: bytes) -> None:
        if self._open:
            self._client.write(data)

    def upstream_end(self) -> None:
        self.upstream_lost(None)

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        if not self._answered.done():
            self._answered.set_result(None)
        if not self._finished.done():
            self._finished.set_result(None)

    def upstream_full(self) -> None:
        self._client.pause_reading()

    def upstream_ready(self) -> None:
        self._client.resume_reading()

    # The client's side.

    def client_data(self, data: bytes) -> None:
        if self._upstream is not None:
            self._upstream.write(data)

    def client_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_ready(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()
