"""One request's life: envelope, replica, tries, answer."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import quote

from gpuserved.core.balance import Signal
from gpuserved.core.replay import Decision, Failure, decide
from gpuserved.core.routes import Match
from gpuserved.router import admission, dispatch, envelope, errors
from gpuserved.router.attempt import Attempt
from gpuserved.router.body import SLICE_BYTES, Body
from gpuserved.router.context import Context
from gpuserved.router.edge import RequestHead, upstream_request
from gpuserved.router.envelope import Envelope
from gpuserved.router.errors import HttpError
from gpuserved.router.pool import ConnectFailed
from gpuserved.router.protocol_client import ClientConnection
from gpuserved.router.relay import IdTap, Relay
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Model

STALE_S = 1.0
"""A reused connection that ends sooner than this after a request, without a byte, was being closed already."""
_UNREACHABLE_PAUSE_S = 0.1

log = logging.getLogger(__name__)


class Exchange:
    """From a whole request to the end of its answer. `run` never raises but for cancellation: the client left."""

    def __init__(
        self, context: Context, client: ClientConnection, head: RequestHead, body: Body, found: Match
    ) -> None:
        self.context = context
        self.client = client
        self.head = head
        self.body = body
        self.found = found
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.deadline = admission.deadline_of(head, self.started)
        self.request_id = context.request_ids.mint(head)
        self.status = 499
        self.model: Model | None = None
        self.envelope: Envelope | None = None
        self.avoid: frozenset[Replica] = frozenset()
        self.deaths = 0
        self.serial = False
        self._attempt: Attempt | None = None
        self._holds_suspects = False
        self._unreachable_since: float | None = None

    # Flow control: the client's transport tells us.

    def client_full(self) -> None:
        """The client reads too slowly."""
        if self._attempt is not None:
            self._attempt.upstream.pause_reading()

    def client_ready(self) -> None:
        """The client takes more."""
        if self._attempt is not None:
            self._attempt.upstream.resume_reading()

    async def run(self) -> None:
        """Serve it."""
        self.context.metrics.in_flight += 1
        try:
            await self._serve()
        except HttpError as error:
            self.status = error.status
            self.client.refuse(error, self.request_id)
        except Exception:
            log.exception("request %s failed in the router", self.request_id.decode())
            self.status = 500
            self.client.refuse(errors.internal(), self.request_id)
        finally:
            self._release_suspects()
            if self._attempt is not None:
                self._attempt.drop()
            self.body.close()
            self.context.request_ids.forget(self.request_id)
            self.context.metrics.in_flight -= 1
            self.context.metrics.request(self.model.name if self.model is not None else "", self.status)

    async def _serve(self) -> None:
        asked = admission.read(self.context, self.head, self.body, self.found)
        self.model = asked.model
        self.envelope = asked.envelope
        self.context.budget.deposit(self.started)
        again = False
        while True:
            if self.serial and not self._holds_suspects:
                await self._take_suspects(self.model)
            lease = None
            if asked.prefer is not None and (asked.only or not again):
                lease = dispatch.lease_of(self.model, asked.prefer, asked.ask)
            if lease is None and asked.only:
                raise errors.no_response(self.found.id or "")
            if lease is None:
                lease = await dispatch.acquire(
                    self.model, ask=asked.ask, avoid=self.avoid, deadline=self.deadline, again=again
                )
            try:
                if await self._once(lease):
                    return
            finally:
                lease.release()
            again = True

    async def _once(self, lease: dispatch.Lease) -> bool:
        """One try. True: the client has its answer. False: try again.

        :raises HttpError: it is over, and nothing was sent yet.
        """
        failure = await self._first(lease)
        attempt = self._attempt
        if failure is None:
            assert attempt is not None
            lease.begun(streams=attempt.head is not None and attempt.head.sse)
            await self._answer(attempt, lease.replica)
            return True
        decision = self._judge(failure, lease.replica)
        if decision.replay:
            if attempt is not None:
                attempt.drop()
                self._attempt = None
            await self._before_next(failure)
            return False
        if attempt is not None and attempt.head is not None and not attempt.lost:
            await self._answer(attempt, lease.replica)
            return True
        raise errors.replica_failed(decision.why)

    def _judge(self, failure: Failure, replica: Replica) -> Decision:
        assert self.model is not None
        self.avoid |= {replica}
        now = self.loop.time()
        decision = decide(
            failure, begun=False, body_bytes=self.body.size, stored=self._stored(), deaths=self.deaths,
            other_ready=dispatch.other_ready(self.model, self.avoid),
            time_left_s=float("inf") if self.deadline is None else self.deadline - now,
        )  # fmt: skip
        if decision.replay and decision.draws and not self.context.budget.withdraw(now):
            decision = Decision(False, why="the retry budget is spent")
        self.serial = decision.serial
        if decision.replay:
            self.context.metrics.replays[self.model.name, failure.value] += 1
        log.warning(
            "request %s: %s on %s: %s", self.request_id.decode(), failure.value, replica.id,
            "sent again" if decision.replay else decision.why,
        )  # fmt: skip
        return decision

    def _stored(self) -> bool:
        return self.envelope is not None and self.envelope.stored and self.found.route.stores

    async def _before_next(self, failure: Failure) -> None:
        """A replica that is merely unreachable stays in rotation when it is the last: do not spin on it."""
        assert self.model is not None
        if failure is not Failure.CONNECT:
            self._unreachable_since = None
            return
        now = self.loop.time()
        if self._unreachable_since is None:
            self._unreachable_since = now
        if now - self._unreachable_since > self.model.queue_timeout_s:
            raise errors.none_ready(self.model.name)
        if not dispatch.other_ready(self.model, self.avoid):
            await asyncio.sleep(_UNREACHABLE_PAUSE_S)

    async def _first(self, lease: dispatch.Lease) -> Failure | None:
        """Send it and wait until it is known what kind of answer comes; None: one for the client."""
        replica = lease.replica
        head, body = self._request(lease.upstream_model)
        try:
            sent = False
            while True:
                try:
                    upstream = await replica.pool.take(self.loop.time(), fresh=sent)
                except ConnectFailed as error:
                    signal = Signal.DEAD if error.proof else Signal.UNREACHABLE
                    replica.failed(signal, "connect")
                    return self._sent_failure(dead=error.proof) if sent else Failure.CONNECT
                attempt = self._attempt = Attempt(upstream)
                sent_at = self.loop.time()
                await self._send(attempt, head, body)
                await self._wait(attempt.first)
                stale = upstream.reused and attempt.lost and not upstream.read_any
                if not (stale and not sent and self.loop.time() - sent_at < STALE_S):
                    break
                sent = True
        finally:
            if body is not self.body:
                body.close()
        return await self._verdict(attempt, replica)

    def _sent_failure(self, *, dead: bool) -> Failure:
        if dead:
            self.deaths += 1
            return Failure.DEATH
        return Failure.EOF

    async def _verdict(self, attempt: Attempt, replica: Replica) -> Failure | None:
        if attempt.lost:
            replica.closed_early()
            if attempt.lost_why is not None:
                raise errors.bad_answer(attempt.lost_why)
            return self._sent_failure(dead=await replica.prove_dead())
        if not attempt.blames_server():
            return None
        if await replica.prove_dead():
            return self._sent_failure(dead=True)
        replica.failed(Signal.SERVER_ERROR, "5xx")
        return Failure.SERVER_ERROR

    def _request(self, upstream_model: str | None) -> tuple[bytes, Body]:
        """The bytes for one replica: the client's own, but for the model's name where the engine has another."""
        body = self.body
        if upstream_model is not None and self.envelope is not None and upstream_model != self.envelope.model:
            body = Body()
            body.append(envelope.with_model(self.body.view(), self.envelope, upstream_model))
        peer = quote(self.client.peer, safe=":.[]").encode()
        length = None if self.head.method == "GET" and not body.size else body.size
        head = upstream_request(
            self.head, target=self.head.target, content_length=length, request_id=self.request_id, peer=peer
        )
        return head, body

    async def _send(self, attempt: Attempt, head: bytes, body: Body) -> None:
        """Write the request; a large one stops where the answer comes first."""
        if body.size <= SLICE_BYTES:
            await attempt.upstream.send(head, body)
            return
        sending = self.loop.create_task(attempt.upstream.send(head, body))
        left = None if self.deadline is None else max(0.0, self.deadline - self.loop.time())
        try:
            await asyncio.wait({sending, attempt.first}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
            else:
                attempt.upstream.spent = True
        finally:
            sending.cancel()

    async def _wait(self, future: asyncio.Future[None]) -> None:
        if self.deadline is None:
            await future
            return
        await asyncio.wait({future}, timeout=max(0.0, self.deadline - self.loop.time()))
        if not future.done():
            raise errors.deadline()

    async def _answer(self, attempt: Attempt, replica: Replica) -> None:
        """Commit to this answer and see it through."""
        assert self.model is not None
        assert attempt.head is not None
        self._release_suspects()
        self.status = attempt.head.status
        if self.status < 500:
            replica.answered()
        model = self.model
        tap = None
        if self.found.route.stores:
            tap = IdTap(lambda identity: self.context.responses.learn(identity, model, replica))
        relay = Relay(
            self.client, attempt.head, http10=self.head.http10, style=self.found.route.sse, tap=tap,
            close=not self.head.keep_alive or self.context.draining,
        )  # fmt: skip
        self.context.metrics.first_byte[model.name].observe(self.loop.time() - self.started)
        attempt.commit(relay, request_id=self.request_id, replica=replica.id.encode())
        await attempt.finished
        self._attempt = None
        if attempt.lost:
            self.context.metrics.cuts[model.name] += 1
            log.warning("request %s: replica %s ended its answer early", self.request_id.decode(), replica.id)
            relay.cut()
            replica.closed_early()
            return
        relay.finish()
        replica.pool.give_back(attempt.upstream, self.loop.time())

    async def _take_suspects(self, model: Model) -> None:
        """Wait until no other suspect of a second crash runs."""
        left = None if self.deadline is None else max(0.0, self.deadline - self.loop.time())
        try:
            await asyncio.wait_for(model.suspects.acquire(), left)
        except (asyncio.TimeoutError, TimeoutError):
            raise errors.deadline() from None
        self._holds_suspects = True

    def _release_suspects(self) -> None:
        if self._holds_suspects and self.model is not None:
            self._holds_suspects = False
            self.model.suspects.release()
