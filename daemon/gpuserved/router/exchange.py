"""One request's life: what it holds, its answer, its end. Most requests need no task; what must wait is in `tries`."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpuserved.router import admission, dispatch, envelope, killers, tries
from gpuserved.router.attempt import Attempt
from gpuserved.router.http import errors
from gpuserved.router.http.body import SLICE_BYTES, Body
from gpuserved.router.http.head import RequestHead, ResponseHead, upstream_request
from gpuserved.router.http.sse import REPLICA_DIED, ROUTER_ENDED
from gpuserved.router.large import LARGE_BYTES
from gpuserved.router.relay import IdTap, Relay
from gpuserved.router.usage import UsageTap

if TYPE_CHECKING:
    from gpuserved.core.routes import Match
    from gpuserved.router.accounts import Account
    from gpuserved.router.admission import Asked
    from gpuserved.router.context import Context
    from gpuserved.router.http.errors import HttpError
    from gpuserved.router.protocol_client import ClientConnection

SUSPECT_HOLD_S = 1.0
"""A suspect of a second crash whose answer has begun keeps the next one waiting for so long, or until it is whole: a short
stream is not cut by the culprit.
"""

log = logging.getLogger(__name__)


class Exchange:
    """From a whole request to the end of its answer.

    Holds at most one lease and one attempt; `over` gives everything back, once, however the request ends.
    """

    __slots__ = (
        "_charge", "_over", "_relay", "_task", "asked", "attempt", "body", "client", "context", "deadline",
        "first_byte_at", "found", "head", "holds_suspects", "lease", "loop", "passed_bytes", "replays", "replica_id",
        "request_id", "sent_at", "started", "status", "was_cut",
    )  # fmt: skip

    def __init__(
        self, context: Context, client: ClientConnection, head: RequestHead, body: Body, found: Match
    ) -> None:
        self.context = context
        self.client = client
        self.head = head
        self.body = body
        self.found = found
        self.loop = client.loop
        self.started = self.loop.time()
        self.deadline = admission.deadline_of(head, self.started)
        self.request_id = context.request_ids.mint(head)
        self.status = 499
        self.asked: Asked | None = None
        self.lease: dispatch.Lease | None = None
        self.attempt: Attempt | None = None
        self.sent_at = self.first_byte_at = 0.0
        """Loop times; 0: not yet."""
        self.replica_id: str | None = None
        """Who answered, or was asked last."""
        self.passed_bytes = 0
        self.replays = 0
        self.was_cut = False
        self.holds_suspects = False
        """It is the one suspect of a second crash of its model that may run."""
        self._relay: Relay | None = None
        self._charge: tuple[Account, UsageTap] | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False

    # Flow control: the client's transport tells us.

    def client_full(self) -> None:
        """The client reads too slowly."""
        if self.attempt is not None:
            self.attempt.upstream.pause_reading()

    def client_ready(self) -> None:
        """The client takes more."""
        if self.attempt is not None:
            self.attempt.upstream.resume_reading()

    def start(self) -> None:
        """Serve it: right here as far as nothing must be waited for, from there on in a task. Never raises."""
        self.context.live.add(self)
        self.context.metrics.in_flight += 1
        try:
            if self.body.size > LARGE_BYTES:
                self._wait()
                return
            self.asked = admission.read(self.context, self.head, self.body, self.found)
            killers.check(self.context, self.head.path, self.body, self.started)
            self.context.budget.deposit(self.started)
            if not self._try_at_once(self.asked):
                self._wait()
        except errors.HttpError as error:
            self.fail(error)
        except Exception as error:
            self.broken(error)

    def cancel(self) -> None:
        """Its client left: an engine at work for it stops."""
        if self._task is None or not self._task.cancel():
            self.over()

    def give_up(self) -> None:
        """The router ends: a stream that has begun ends with an error event, anything else as if its client had left."""
        relay = self._relay
        if self.attempt is None or relay is None:
            self.cancel()
            return
        self.was_cut = True
        relay.cut(ROUTER_ENDED)
        self.over()

    def _try_at_once(self, asked: Asked) -> bool:
        """Send it where a replica takes it now and a connection stands ready. False: something must be waited for."""
        if asked.prefer is not None or self.deadline is not None or self.body.size > SLICE_BYTES:
            return False
        self.lease = lease = dispatch.at_once(asked.model, asked.ask)
        if lease is None:
            return False
        upstream = lease.replica.pool.idle(self.started)
        if upstream is None:
            return False
        head, body = self.request_for(lease)
        self.attempt = attempt = Attempt(upstream)
        self.sent_at = self.started
        upstream.write(head + body.view() if body.size else head)
        if body is not self.body:
            body.close()
        attempt.when_known(self._known)
        return True

    def _known(self) -> None:
        """What was sent at once has an answer, or will never have one."""
        attempt = self.attempt
        if attempt is None:
            return
        try:
            if attempt.lost or attempt.blames_server():
                self._wait()
            else:
                self.commit()
        except Exception as error:
            self.broken(error)

    def _wait(self) -> None:
        task = self.loop.create_task(tries.Tries(self).run())
        self._task = task
        task.add_done_callback(self._waited)

    def _waited(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self.over()

    def request_for(self, lease: dispatch.Lease) -> tuple[bytes, Body]:
        """The bytes for one replica: the client's own, but for the model's name where the engine has another."""
        body, name = self.body, self.renamed(lease)
        if name is not None and self.asked is not None and self.asked.envelope is not None:
            body = Body()
            body.append(envelope.with_model(self.body.view(), self.asked.envelope, name))
        return self.head_for(body), body

    def renamed(self, lease: dispatch.Lease) -> str | None:
        """What this replica calls the model, where that is not what the client does."""
        name, seen = lease.upstream_model, None if self.asked is None else self.asked.envelope
        return name if seen is not None and name != seen.model else None

    def head_for(self, body: Body) -> bytes:
        """The head of the request that a replica gets with this body."""
        return upstream_request(
            self.head, target=self.head.target, request_id=self.request_id, peer=self.context.forwarded_for(self.head, self.client.quoted_peer, self.client.peer),
            content_length=None if self.head.method == "GET" and not body.size else body.size,
        )  # fmt: skip

    def commit(self) -> None:
        """The answer that has begun is the client's: from here on it passes as it comes, and no task is needed."""
        attempt, lease = self.attempt, self.lease
        assert attempt is not None
        assert attempt.head is not None
        assert lease is not None
        if self.holds_suspects:
            self.loop.call_later(SUSPECT_HOLD_S, self.release_suspects)
        self.body.close()
        replica, model = lease.replica, lease.model
        lease.begun(streams=attempt.head.sse)
        self.status = attempt.head.status
        if self.status < 500:
            replica.answered()
        tap = None
        if self.found.route.stores:
            tap = IdTap(lambda identity: self.context.responses.learn(identity, model, replica))
        self._relay = Relay(
            self.client, attempt.head, http10=self.head.http10, style=self.found.route.sse, tap=tap,
            close=not self.head.keep_alive or self.context.draining, usage=self._count(attempt.head),
        )  # fmt: skip
        self.replica_id = replica.id
        self.first_byte_at = now = self.loop.time()
        self.context.metrics.first_byte[model.name].observe(now - self.started)
        attempt.commit(self._relay, self._ended, request_id=self.request_id, replica=replica.wire_id)

    def _count(self, head: ResponseHead) -> UsageTap | None:
        """What counts the tokens of an answer that a key pays for."""
        account = self.context.accounts.find(self.head) if head.status == 200 else None
        if account is not None:
            self._charge = (account, UsageTap(sse=head.sse))
            return self._charge[1]
        return None

    def _ended(self) -> None:
        """Nothing more comes of the answer."""
        attempt, lease, relay = self.attempt, self.lease, self._relay
        if attempt is None or lease is None or relay is None:
            return
        self.attempt = None
        self.passed_bytes = attempt.upstream.passed_bytes
        try:
            if attempt.lost:
                self.was_cut = True
                self.context.metrics.cuts[lease.model.name] += 1
                identity = self.request_id.decode()
                log.warning("request %s: replica %s ended its answer early", identity, lease.replica.id)
                relay.cut(REPLICA_DIED)
                lease.replica.closed_early()
            else:
                lease.replica.pool.give_back(attempt.upstream, self.loop.time())
                relay.finish()
        except Exception as error:
            self.broken(error)
            return
        self.over()

    def fail(self, error: HttpError) -> None:
        """It ends with an answer of our own."""
        self.status = error.status
        self.client.refuse(error, self.request_id)
        self.over()

    def broken(self, error: Exception) -> None:
        """An error of ours costs this request alone."""
        log.error("request %s failed in the router", self.request_id.decode(), exc_info=error)
        self.fail(errors.internal())

    def release_lease(self) -> None:
        """Done with this replica."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()

    def release_suspects(self) -> None:
        """The next suspect may run."""
        if self.holds_suspects and self.asked is not None:
            self.holds_suspects = False
            self.asked.model.suspects.release()

    @property
    def model_name(self) -> str | None:
        """The served name; None: it named none that is served."""
        return None if self.asked is None else self.asked.model.name

    @property
    def sent_bytes(self) -> int:
        """Of a replica's answer, body and framing."""
        return 0 if self._relay is None else self._relay.sent_bytes + self.passed_bytes

    def over(self) -> None:
        """Give everything back."""
        if self._over:
            return
        self._over = True
        self.release_suspects()
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            self.passed_bytes = attempt.upstream.passed_bytes
            attempt.drop()
        self.release_lease()
        self.body.close()
        if self._charge is not None:
            account, usage = self._charge
            account.charge(*usage.tokens(self.body.size), self.loop.time())
        context = self.context
        context.live.discard(self)
        context.request_ids.forget(self.request_id)
        context.metrics.in_flight -= 1
        context.metrics.request(self.model_name or "", self.status)
        if context.access_log is not None:
            payer = context.accounts.find(self.head)
            context.access_log.add(self, self.loop.time(), None if payer is None else payer.name)
