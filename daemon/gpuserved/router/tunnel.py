"""A WebSocket: upgraded on one replica, then bytes both ways until either side ends."""

from __future__ import annotations

import asyncio
import logging

from gpuserved.core.balance import Signal
from gpuserved.router import admission, dispatch, envelope
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import RequestHead, ResponseHead, client_response, upstream_request
from gpuserved.router.pool import ConnectFailed
from gpuserved.router.protocol_client import ClientConnection
from gpuserved.router.protocol_upstream import Upstream
from gpuserved.router.replica import Replica

UPGRADE_S = 30.0
_UNREACHABLE_PAUSE_S = 0.1

log = logging.getLogger(__name__)


class Tunnel:
    """One upgraded connection; the sink of its upstream and the tunnel of its client."""

    def __init__(
        self, context: Context, client: ClientConnection, head: RequestHead, asked: admission.Asked
    ) -> None:
        self.context = context
        self.client = client
        self.head = head
        self.asked = asked
        self.loop = asyncio.get_running_loop()
        self.deadline = admission.deadline_of(head, self.loop.time())
        self.request_id = context.request_ids.mint(head)
        self._upstream: Upstream | None = None
        self._replica_id = b""
        self._answered: asyncio.Future[int | None] = self.loop.create_future()
        self._finished: asyncio.Future[None] = self.loop.create_future()

    async def run(self) -> None:
        """Serve it; never raises but for cancellation."""
        status = 499
        self.context.metrics.in_flight += 1
        try:
            status = await self._serve()
        except HttpError as error:
            status = error.status
            self.client.refuse(error, self.request_id)
        except Exception:
            log.exception("tunnel %s failed in the router", self.request_id.decode())
            status = 500
            self.client.refuse(errors.internal(), self.request_id)
        finally:
            if self._upstream is not None:
                self._upstream.detach()
                self._upstream.abort()
            self.context.request_ids.forget(self.request_id)
            self.context.metrics.in_flight -= 1
            self.context.metrics.request(self.asked.model.name, status)

    async def _serve(self) -> int:
        avoid = frozenset[Replica]()
        again = False
        since = self.loop.time()
        while True:
            model = self.asked.model
            lease = await dispatch.acquire(
                model, ask=self.asked.ask, avoid=avoid, deadline=self.deadline, again=again,
                tenant=self.context.tenant_of(self.head, self.client.peer),
            )  # fmt: skip
            try:
                if await self._connect(lease):
                    return await self._through(lease)
            finally:
                lease.release()
            avoid |= {lease.replica}
            again = True
            if self.loop.time() - since > model.queue_timeout_s:
                raise errors.none_ready(model.name)
            if not dispatch.other_ready(model, avoid):
                await asyncio.sleep(_UNREACHABLE_PAUSE_S)

    async def _connect(self, lease: dispatch.Lease) -> bool:
        """False: nothing was sent, another replica may do."""
        try:
            self._upstream = await lease.replica.pool.take(self.loop.time(), fresh=True)
        except ConnectFailed as error:
            lease.replica.failed(Signal.DEAD if error.proof else Signal.UNREACHABLE, "connect")
            return False
        return True

    async def _through(self, lease: dispatch.Lease) -> int:
        """From the upgrade to the end of the tunnel; the status the client got.

        :raises HttpError: the replica did not upgrade.
        """
        upstream = self._upstream
        assert upstream is not None
        self._replica_id = lease.replica.id.encode()
        target = self.head.target
        if lease.upstream_model is not None:
            query = envelope.query_with_model(self.head.query, lease.upstream_model)
            target = f"{self.head.path}?{query}".encode()
        upstream.begin(self, upgrade=True)
        head = upstream_request(
            self.head, target=target, content_length=None, request_id=self.request_id, peer=self.context.forwarded_for(self.head, self.client.quoted_peer, self.client.peer)
        )  # fmt: skip
        await upstream.send(head, Body())
        await asyncio.wait({self._answered}, timeout=UPGRADE_S)
        status = self._answered.result() if self._answered.done() else None
        if status is None:
            lease.replica.closed_early()
            raise errors.replica_failed("it did not upgrade the connection")
        if status != 101:
            raise HttpError(
                status if status in errors.REASONS and status >= 400 else 502,
                f"The replica refused to upgrade the connection (status {status}).",
                kind="invalid_request_error", code="upgrade_refused",
            )  # fmt: skip
        lease.replica.answered()
        await self._finished
        self.client.close()
        return 101

    # The replica's side.

    def upstream_head(self, head: ResponseHead) -> None:
        """Upgraded, or refused."""
        if head.status == 101:
            framing = b"connection: upgrade\r\nupgrade: websocket\r\n"
            self.client.write(
                client_response(
                    head, framing=framing, request_id=self.request_id, replica=self._replica_id, close=False
                )
            )
            self.client.start_tunnel(self)
        if not self._answered.done():
            self._answered.set_result(head.status)

    def upstream_body(self, data: bytes) -> None:
        """To the client."""
        if self.client.tunnel is self:
            self.client.write(data)

    def upstream_end(self) -> None:
        """The replica ended."""
        self.upstream_lost(None)

    def upstream_lost(self, why: str | None) -> None:  # noqa: ARG002 - Sink's signature
        """The replica is gone: the tunnel ends."""
        if not self._answered.done():
            self._answered.set_result(None)
        if not self._finished.done():
            self._finished.set_result(None)

    def upstream_full(self) -> None:
        """The replica takes no more for now."""
        self.client.pause_reading()

    def upstream_ready(self) -> None:
        """The replica takes more."""
        self.client.resume_reading()

    # The client's side.

    def client_data(self, data: bytes) -> None:
        """To the replica."""
        if self._upstream is not None:
            self._upstream.write(data)

    def client_full(self) -> None:
        """The client reads too slowly."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def client_ready(self) -> None:
        """The client takes more."""
        if self._upstream is not None:
            self._upstream.resume_reading()
