"""What of a request must wait: the queue, a new connection, proof of a death, the next try."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpuserved.core.balance import Signal
from gpuserved.core.replay import DEATHS_MAX, Decision, Failure, decide
from gpuserved.host.deadline import within
from gpuserved.router import admission, dispatch, killers, large
from gpuserved.router.attempt import Attempt
from gpuserved.router.http import errors
from gpuserved.router.http.body import SLICE_BYTES, Body
from gpuserved.router.http.errors import HttpError
from gpuserved.router.large import LARGE_BYTES
from gpuserved.router.pool import ConnectFailed

if TYPE_CHECKING:
    from gpuserved.router.admission import Asked
    from gpuserved.router.exchange import Exchange
    from gpuserved.router.replica import Replica

STALE_S = 1.0
"""A reused connection that ends sooner than this after a request, without a byte, was being closed already."""
_UNREACHABLE_PAUSE_S = 0.1

log = logging.getLogger(__name__)


class Tries:
    """The tries of one exchange. `run` ends when an answer is committed to or refused; it raises only cancellation."""

    def __init__(self, exchange: Exchange) -> None:
        self._x = exchange
        self._loop = exchange.loop
        self._context = exchange.context
        self._avoid: frozenset[Replica] = frozenset()
        self._deaths = 0
        self._serial = False
        self._unreachable_since: float | None = None

    async def run(self) -> None:
        """Try until the client has an answer. A try that was begun without us is taken up where it stands."""
        try:
            if self._x.asked is None:
                self._x.asked = await self._read_large()
            await self._serve(self._x.asked)
        except HttpError as error:
            self._x.fail(error)
        except Exception as error:
            self._x.broken(error)

    async def _read_large(self) -> Asked:
        x = self._x
        asked = await admission.read_large(self._context, x.head, x.body, x.found)
        killers.check(self._context, x.head.path, x.body, self._loop.time())
        self._context.budget.deposit(self._loop.time())
        return asked

    async def _serve(self, asked: Asked) -> None:
        x = self._x
        again = False
        while True:
            if self._serial and not x.holds_suspects:
                await self._take_suspects(asked)
            if x.lease is None:
                x.lease = await self._lease(asked, again=again)
            try:
                done = await self._once(asked, x.lease)
            except BaseException:
                x.release_lease()
                raise
            if done:
                return
            x.release_lease()
            again = True

    async def _lease(self, asked: Asked, *, again: bool) -> dispatch.Lease:
        if asked.prefer is not None and (asked.only or not again):
            lease = dispatch.lease_of(asked.model, asked.prefer, asked.ask, only=asked.only)
            if lease is not None:
                return lease
        if asked.only:
            raise errors.no_response(self._x.found.id or "")
        return await dispatch.acquire(
            asked.model, ask=asked.ask, avoid=self._avoid, deadline=self._x.deadline, again=again,
            tenant=self._context.tenant_of(self._x.head, self._x.client.peer),
        )  # fmt: skip

    async def _once(self, asked: Asked, lease: dispatch.Lease) -> bool:
        """One try. True: the client has its answer, or will have it without us. False: try again.

        :raises HttpError: it is over, and nothing was sent yet.
        """
        x = self._x
        failure = await self._first(lease)
        attempt = x.attempt
        if failure is None:
            x.commit()
            return True
        decision = self._judge(failure, asked, lease.replica)
        if decision.replay:
            if attempt is not None:
                attempt.drop()
                x.attempt = None
            await self._before_next(failure, asked)
            return False
        if failure is Failure.SERVER_ERROR:
            x.commit()
            return True
        killers.remember(self._context, x.head.path, x.body, self._deaths, self._loop.time())
        if self._deaths >= DEATHS_MAX:
            raise errors.blocked(self._deaths)
        raise errors.replica_failed(decision.why)

    def _judge(self, failure: Failure, asked: Asked, replica: Replica) -> Decision:
        x = self._x
        self._avoid |= {replica}
        now = self._loop.time()
        decision = decide(
            failure, begun=False, body_bytes=x.body.size, deaths=self._deaths,
            stored=asked.envelope is not None and asked.envelope.stored and x.found.route.stores,
            other_ready=dispatch.other_ready(asked.model, self._avoid),
            time_left_s=float("inf") if x.deadline is None else x.deadline - now,
        )  # fmt: skip
        if decision.replay and decision.draws and not self._context.budget.withdraw(now):
            decision = Decision(False, why="the retry budget is spent")
        self._serial = decision.serial
        if decision.replay:
            self._context.metrics.replays[asked.model.name, failure.value] += 1
            x.replays += 1
        log.warning(
            "request %s: %s on %s: %s", x.request_id.decode(), failure.value, replica.id,
            "sent again" if decision.replay else decision.why,
        )  # fmt: skip
        return decision

    async def _before_next(self, failure: Failure, asked: Asked) -> None:
        """A replica that is merely unreachable stays in rotation when it is the last: do not spin on it."""
        if failure is not Failure.CONNECT:
            self._unreachable_since = None
            return
        now = self._loop.time()
        if self._unreachable_since is None:
            self._unreachable_since = now
        if now - self._unreachable_since > asked.model.queue_timeout_s:
            raise errors.none_ready(asked.model.name)
        if not dispatch.other_ready(asked.model, self._avoid):
            await asyncio.sleep(_UNREACHABLE_PAUSE_S)

    async def _first(self, lease: dispatch.Lease) -> Failure | None:
        """Send it and wait until it is known what kind of answer comes; None: one for the client."""
        x, replica = self._x, lease.replica
        attempt = x.attempt
        fresh = False
        while True:
            if attempt is None:
                try:
                    upstream = await replica.pool.take(self._loop.time(), fresh=fresh)
                except ConnectFailed as error:
                    replica.failed(Signal.DEAD if error.proof else Signal.UNREACHABLE, "connect")
                    return self._sent_failure(dead=error.proof) if fresh else Failure.CONNECT
                attempt = x.attempt = Attempt(upstream)
                x.sent_at = self._loop.time()
                x.replica_id = replica.id
                await self._send_and_wait(lease, attempt)
            if fresh or not self._was_stale(attempt):
                return await self._verdict(attempt, replica)
            fresh, attempt = True, None

    def _was_stale(self, attempt: Attempt) -> bool:
        upstream = attempt.upstream
        ended_unread = upstream.reused and attempt.lost and not upstream.read_any
        return ended_unread and self._loop.time() - self._x.sent_at < STALE_S

    def _sent_failure(self, *, dead: bool) -> Failure:
        if dead:
            self._deaths += 1
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

    async def _send_and_wait(self, lease: dispatch.Lease, attempt: Attempt) -> None:
        head, body = await self._request(lease)
        known = self._loop.create_future()
        attempt.when_known(lambda: None if known.done() else known.set_result(None))
        try:
            await self._send(attempt, head, body, known)
            await self._wait(known)
        finally:
            if body is not self._x.body:
                body.close()

    async def _request(self, lease: dispatch.Lease) -> tuple[bytes, Body]:
        x, name = self._x, self._x.renamed(lease)
        if name is None or x.body.size <= LARGE_BYTES or x.asked is None or x.asked.envelope is None:
            return x.request_for(lease)
        body = await large.with_model(x.body, x.asked.envelope, name)
        return x.head_for(body), body

    async def _send(self, attempt: Attempt, head: bytes, body: Body, known: asyncio.Future[None]) -> None:
        """Write the request; a large one stops where the answer comes first."""
        if body.size <= SLICE_BYTES:
            await attempt.upstream.send(head, body)
            return
        sending = self._loop.create_task(attempt.upstream.send(head, body))
        try:
            await asyncio.wait({sending, known}, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
            else:
                attempt.upstream.spent = True
        finally:
            sending.cancel()

    async def _wait(self, known: asyncio.Future[None]) -> None:
        if self._x.deadline is None:
            await known
            return
        await asyncio.wait({known}, timeout=self._left())
        if not known.done():
            raise errors.deadline()

    def _left(self) -> float | None:
        """Seconds until the client gives up, if it said when."""
        return None if self._x.deadline is None else max(0.0, self._x.deadline - self._loop.time())

    async def _take_suspects(self, asked: Asked) -> None:
        """Wait until no other suspect of a second crash runs."""
        suspects = asked.model.suspects
        try:
            await within(suspects.acquire(), self._left(), lambda _: suspects.release())
        except (asyncio.TimeoutError, TimeoutError):
            raise errors.deadline() from None
        self._x.holds_suspects = True
