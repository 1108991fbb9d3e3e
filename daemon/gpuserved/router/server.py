"""The router: one listening socket, the clients on it, and the clockwork around them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import gpuserved
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.core.replay import RetryBudget
from gpuserved.core.routes import LOCAL, Kind, Match
from gpuserved.router.accesslog import AccessLog
from gpuserved.router.admission import Admission
from gpuserved.router.affinity import Affinity
from gpuserved.router.builtin import BuiltinRoutes
from gpuserved.router.client_connection import ClientConnection
from gpuserved.router.context import Context
from gpuserved.router.control import Control, decode_table
from gpuserved.router.counts import Counts
from gpuserved.router.drain import Drain
from gpuserved.router.exchange import Exchange
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import RequestHead
from gpuserved.router.listener import Acceptor, Certificates, enough, listen, raise_limit
from gpuserved.router.metrics import Metrics
from gpuserved.router.peers import Peers
from gpuserved.router.poison import Poison
from gpuserved.router.prompts import Prompts
from gpuserved.router.registry import Registry
from gpuserved.router.replica import Replica
from gpuserved.router.request import InFlight, Request, deadline_of
from gpuserved.router.tenants import Tenants
from gpuserved.router.tunnel import Tunnel

TICK_S = 0.5
PROBE_S = 1.0

log = logging.getLogger(__name__)


class Router:
    """Everything of one router process. `ClientConnection`'s front."""

    def __init__(
        self,
        sock: socket.socket,
        table_path: Path,
        control_path: str,
        *,
        access_log: AccessLog | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._table_path = table_path
        self._table_seen: tuple[int, int, int] | None = None
        self._from_socket = False
        self._clients: set[ClientConnection] = set()
        self._certificates = Certificates()
        self._reopening: asyncio.Task[None] | None = None
        self._server: asyncio.AbstractServer | Acceptor | None = None
        self._counts = counts
        self._access_log = access_log
        self._fds = raise_limit()
        self._drain = Drain()
        self._control = Control(control_path, apply=self.apply, stats=self.stats, drain=self._drain.set)
        peers = Peers(control_path)
        self._registry = registry = Registry(counts, peers, self._replica_failed)
        self._prompts = Prompts(registry, peers)
        self._tenants = Tenants()
        self._metrics = Metrics()
        self._in_flight = InFlight()
        affinity, poison = Affinity(self._prompts), Poison()
        budget = RetryBudget(self._loop.time())
        self._admission = Admission(registry, self._tenants, affinity, poison, budget)
        self._context = Context(
            self._admission, affinity, poison, budget, self._metrics, self._in_flight, self._drain, access_log
        )
        self._builtin = BuiltinRoutes(
            registry, self._tenants, self._metrics,
            connections=lambda: len(self._clients), row=None if counts is None else counts.row,
        )  # fmt: skip

    # ClientConnection's front.

    def screen(self, head: RequestHead) -> Match:
        return self._admission.screen(head, self._loop.time())

    def body_max_bytes(self) -> int:
        return self._admission.body_max_bytes

    def begin(self, client: ClientConnection, head: RequestHead, body: Body, found: Match) -> None:
        """A whole request: answered here, or served by a replica."""
        try:
            if found.route.kind in LOCAL:
                body.close()
                client.respond(*self._builtin.answer(found))
                return
            if not self._has_fds(1):
                raise errors.overloaded()
        except HttpError as error:
            body.close()
            self.refused(error.status)
            client.refuse(error)
            return
        now = self._loop.time()
        address, forwarded_for = self._tenants.origin(head, client.peer, client.quoted_peer)
        request = Request(
            id=self._in_flight.new_id(head), head=head, body=body, match=found, account=self._tenants.find(head),
            client=address, forwarded_for=forwarded_for, arrived_at=now, deadline=deadline_of(head, now),
        )  # fmt: skip
        kind = Tunnel if found.route.kind is Kind.UPGRADE else Exchange
        work = kind(self._context, client, request)
        client.served_by(work)
        work.start()

    def opened(self, client: ClientConnection) -> bool:
        self._clients.add(client)
        self._count_clients()
        if len(self._clients) <= self._registry.table.max_connections and self._has_fds(0):
            return True
        self._metrics.refused_connection()
        return False

    def _has_fds(self, more: int) -> bool:
        """Are there file descriptors for all clients, all requests and `more`, and some for the control socket and the logs?"""
        return enough(self._fds, connections=len(self._clients), requests=len(self._in_flight) + more)

    def closed(self, client: ClientConnection) -> None:
        self._clients.discard(client)
        self._count_clients()

    def _count_clients(self) -> None:
        if self._counts is not None:
            self._counts.connections(len(self._clients))

    def refused(self, status: int) -> None:
        self._metrics.ended("", status)

    def keeps_alive(self) -> bool:
        return not self._drain.begun

    # Tables.

    def apply(self, table: RoutingTable) -> None:
        """The supervisor's word, by socket."""
        self._from_socket = True
        self._apply(table)

    def _apply(self, table: RoutingTable) -> None:
        self._tenants.update(table.keys, table.trusted_proxies, self._loop.time())
        changed = self._certificates.take(table.tls)
        if changed and self._server is not None and not self._drain.begun:
            self._reopening = self._loop.create_task(self._reopen())
        self._registry.apply(table)
        log.info("table generation %d: %d models", table.generation, len(table.models))

    def read_table_file(self) -> None:
        """Take the file if it changed, unless the socket brought something newer."""
        try:
            found = os.stat(self._table_path)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == self._table_seen:
                return
            table = decode_table(self._table_path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s not read: %s", self._table_path, error)
            return
        self._table_seen = seen
        if self._from_socket and table.generation <= self._registry.table.generation:
            return
        self._apply(table)

    def _replica_failed(self, replica: Replica, kind: str) -> None:
        self._control.push(
            {"event": "replica_failed", "id": replica.id, "generation": replica.generation, "kind": kind}
        )

    def stats(self) -> RouterStats:
        """The wire form of our figures."""
        metrics = self._metrics
        queued = {model.name: model.queued for model in self._registry.models.values()}
        return RouterStats(
            pid=os.getpid(), table_generation=self._registry.table.generation, in_flight=len(self._in_flight),
            queued=sum(queued.values()), requests_total=metrics.requests_total,
            replayed_total=sum(metrics.replays.values()), cut_total=sum(metrics.cuts.values()),
            rejected_total=metrics.rejected_total, connections=len(self._clients), queued_by_model=queued,
            replicas=[replica.stats() for replica in self._registry.replicas()],
            keys=[account.stats() for account in self._tenants.accounts()],
            version=gpuserved.__version__, draining=self._drain.begun,
        )  # fmt: skip

    # Life.

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then finish what is in flight, on the terms of `Drain`."""
        self.read_table_file()
        await self._control.start()
        await self._open()
        clockwork = [
            self._loop.create_task(self._tick()),
            self._loop.create_task(self._probe()),
            self._loop.create_task(self._prompts.run()),
        ]
        log.info("router %d serves %s", os.getpid(), self._sock.getsockname())
        await stop.wait()
        if self._server is not None:
            self._server.close()
        log.info("draining %d connections", len(self._clients))
        await self._drain.wait(self._clients, lambda: len(self._in_flight))
        self._in_flight.give_up()
        for work in clockwork:
            work.cancel()
        await asyncio.sleep(0)
        self._control.close()
        if self._access_log is not None:
            self._access_log.close()
        self._registry.close()
        self._prompts.close()
        if self._counts is not None:
            self._counts.close()
        await self._flushed(self._loop.time() + 2 * TICK_S)

    async def _reopen(self) -> None:
        try:
            await self._open()
        except OSError:
            log.exception("the port was not opened anew")

    async def _open(self) -> None:
        """Accept connections, plain or TLS, on the one socket; a server from before has its own descriptor of it."""
        before = self._server
        self._server = await listen(
            self._sock.dup(), self._counts, lambda: ClientConnection(self), lambda: len(self._clients),
            tls=self._certificates.context,
        )  # fmt: skip
        if before is not None:
            before.close()

    async def _flushed(self, until: float) -> None:
        """Let the last bytes of the last answers leave."""
        while self._clients and self._loop.time() < until:
            await asyncio.sleep(0.02)
        for client in list(self._clients):
            client.close()

    async def _tick(self) -> None:
        """Deadlines of clients, idle connections to replicas, the table's file."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            try:
                for client in [c for c in self._clients if 0.0 < c.deadline < now]:
                    client.expire()
                for replica in self._registry.replicas():
                    replica.pool.sweep(now)
                self.read_table_file()
                if self._access_log is not None:
                    self._access_log.flush()
            except Exception:
                log.exception("the clockwork failed")

    async def _probe(self) -> None:
        """Ask ejected replicas whether they are back."""
        while True:
            await asyncio.sleep(PROBE_S)
            outcomes = await asyncio.gather(
                *(replica.probe() for replica in self._registry.replicas()), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    log.error("a probe failed: %r", outcome)
