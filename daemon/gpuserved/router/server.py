"""The router: one listening socket, the clients on it, and the clockwork around them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from pathlib import Path

import gpuserved
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.core import routes
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.core.replay import RetryBudget
from gpuserved.core.routes import LOCAL, Kind, Match
from gpuserved.router import admission, dispatch, local
from gpuserved.router.accept import Acceptor, listen
from gpuserved.router.accesslog import AccessLog
from gpuserved.router.context import Context
from gpuserved.router.control import Control, decode_table
from gpuserved.router.counts import Counts
from gpuserved.router.descriptors import enough, raise_limit
from gpuserved.router.drain import Drain
from gpuserved.router.exchange import Exchange
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import RequestHead
from gpuserved.router.metrics import Metrics
from gpuserved.router.prompts import Prompts
from gpuserved.router.protocol_client import ClientConnection
from gpuserved.router.proxies import TrustedProxies
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Fleet
from gpuserved.router.tls import Certificates
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
        self._sock = sock
        self._table_path = table_path
        self._table_seen: tuple[int, int, int] | None = None
        self._from_socket = False
        self._clients: set[ClientConnection] = set()
        self._certificates = Certificates()
        self._reopened: asyncio.Task[None] | None = None
        self._server: asyncio.AbstractServer | Acceptor | None = None
        self._counts = counts
        self._tasks: set[asyncio.Task[None]] = set()
        self._fds = raise_limit()
        self._drain = Drain()
        self.control = Control(control_path, apply=self.apply, stats=self.stats, drain=self._drain.set)
        fleet = Fleet(dispatch.pump, self._replica_failed, self._sent)
        fleet.counts = counts
        budget = RetryBudget(asyncio.get_running_loop().time())
        self.context = Context(fleet, Metrics(), budget, Prompts(fleet, control_path))
        self.context.started_at = int(time.time())
        self.context.access_log = access_log

    # ClientConnection's front.

    def screen(self, head: RequestHead) -> Match:
        """Key, route, length and the key's limits, from the head alone.

        :raises HttpError: 401, 404, 413 or 429.
        """
        found = routes.match(head.method, head.path)
        account = self.context.accounts.find(head)
        if not (found is not None and found.route.open) and self.context.accounts and account is None:
            raise errors.unauthorized()
        if found is None:
            raise errors.no_route(head.method, head.path)
        if (head.content_length or 0) > self.body_max_bytes():
            raise errors.too_large(self.body_max_bytes())
        if account is not None and found.route.kind not in LOCAL:
            account.admit(asyncio.get_running_loop().time())
        return found

    def body_max_bytes(self) -> int:
        """Longest body."""
        return self.context.fleet.table.body_max_bytes

    def begin(self, client: ClientConnection, head: RequestHead, body: Body, found: Match) -> None:
        """A whole request: answered here, or served by a replica in a task of its own."""
        try:
            if found.route.kind not in LOCAL and not self._has_fds(1):
                raise errors.overloaded()
            own = local.answer(self.context, found)
            if own is not None:
                body.close()
                client.respond(*own)
                return
            if found.route.kind is Kind.UPGRADE:
                body.close()
                tunnel = Tunnel(self.context, client, head, admission.read(self.context, head, body, found))
                client.work = self._spawn(tunnel)
                return
        except HttpError as error:
            body.close()
            self.refused(error.status)
            client.refuse(error)
            return
        exchange = Exchange(self.context, client, head, body, found)
        client.flow = client.work = exchange
        exchange.start()

    def _spawn(self, work: Tunnel) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self, client: ClientConnection) -> bool:
        """Counts a connection; False: over the cap, which keeps file descriptors for what already runs."""
        self._clients.add(client)
        self._count_clients()
        within = len(self._clients) <= self.context.fleet.table.max_connections
        if within and self._has_fds(0):
            return True
        self.context.metrics.connections_refused += 1
        return False

    def _has_fds(self, more: int) -> bool:
        """Are there file descriptors for all clients, all requests and `more`, and some for the control socket and the logs?"""
        requests = len(self._tasks) + len(self.context.live) + more
        return enough(self._fds, connections=len(self._clients), requests=requests)

    def closed(self, client: ClientConnection) -> None:
        """A connection is gone."""
        self._clients.discard(client)
        self._count_clients()

    def _count_clients(self) -> None:
        self.context.metrics.connections = len(self._clients)
        if self._counts is not None:
            self._counts.connections(len(self._clients))

    def refused(self, status: int) -> None:
        """A request was refused by its head."""
        self.context.metrics.request("", status)

    def keeps_alive(self) -> bool:
        """False while draining."""
        return not self.context.draining

    # Tables.

    def apply(self, table: RoutingTable) -> None:
        """The supervisor's word, by socket."""
        self._from_socket = True
        self._apply(table)

    def _apply(self, table: RoutingTable) -> None:
        self.context.accounts.update(table.keys, asyncio.get_running_loop().time())
        self.context.proxies = TrustedProxies(table.trusted_proxies)
        changed = self._certificates.take(table.tls)
        if changed and self._server is not None and not self.context.draining:
            self._reopened = asyncio.get_running_loop().create_task(self._open())
        self.context.fleet.apply(table)
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
        if self._from_socket and table.generation <= self.context.fleet.table.generation:
            return
        self._apply(table)

    def _replica_failed(self, replica: Replica, kind: str) -> None:
        self.control.push(
            {"event": "replica_failed", "id": replica.id, "generation": replica.generation, "kind": kind}
        )

    def _sent(self, replica: Replica, key: PrefixKey, now: float) -> None:
        self.context.prompts.tell(replica, key, now)

    def stats(self) -> RouterStats:
        """The wire form of our figures."""
        fleet, metrics = self.context.fleet, self.context.metrics
        queued = {model.name: len(model.waiters) for model in fleet.models.values()}
        return RouterStats(
            pid=os.getpid(), table_generation=fleet.table.generation, in_flight=metrics.in_flight,
            queued=sum(queued.values()), requests_total=metrics.requests_total,
            replayed_total=sum(metrics.replays.values()), cut_total=sum(metrics.cuts.values()),
            rejected_total=metrics.rejected_total, connections=len(self._clients), queued_by_model=queued,
            replicas=[replica.stats() for replica in fleet.replicas()],
            keys=[account.stats() for account in self.context.accounts],
            version=gpuserved.__version__, draining=self.context.draining,
        )  # fmt: skip

    # Life.

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then finish what is in flight, on the terms of `Drain`."""
        loop = asyncio.get_running_loop()
        self.read_table_file()
        await self.control.start()
        await self._open()
        clockwork = [
            loop.create_task(self._tick()),
            loop.create_task(self._probe()),
            loop.create_task(self.context.prompts.run()),
        ]
        log.info("router %d serves %s", os.getpid(), self._sock.getsockname())
        await stop.wait()
        self.context.draining = True
        if self._server is not None:
            self._server.close()
        log.info("draining %d connections", len(self._clients))
        await self._drain.wait(self._clients, lambda: len(self.context.live) + len(self._tasks))
        for request in tuple(self.context.live):
            request.give_up()
        for work in (*self._tasks, *clockwork):
            work.cancel()
        await asyncio.sleep(0)
        self.control.close()
        if self.context.access_log is not None:
            self.context.access_log.close()
        self.context.fleet.close()
        self.context.prompts.close()
        if self._counts is not None:
            self._counts.close()
        await self._flushed(loop.time() + 2 * TICK_S)

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
        loop = asyncio.get_running_loop()
        while self._clients and loop.time() < until:
            await asyncio.sleep(0.02)
        for client in list(self._clients):
            client.close()

    async def _tick(self) -> None:
        """Deadlines of clients, idle connections to replicas, the table's file."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            try:
                for client in [c for c in self._clients if 0.0 < c.deadline < now]:
                    client.expire()
                for replica in self.context.fleet.replicas():
                    replica.pool.sweep(now)
                self.read_table_file()
                if self.context.access_log is not None:
                    self.context.access_log.flush()
            except Exception:
                log.exception("the clockwork failed")

    async def _probe(self) -> None:
        """Ask ejected replicas whether they are back."""
        while True:
            await asyncio.sleep(PROBE_S)
            outcomes = await asyncio.gather(
                *(replica.probe() for replica in self.context.fleet.replicas()), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    log.error("a probe failed: %r", outcome)
