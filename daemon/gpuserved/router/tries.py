"""The tries of one request, each on one replica, until one of them has an answer for the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gpuserved.core.balance import Signal
from gpuserved.core.replay import DEATHS_MAX, Decision, Failure, decide
from gpuserved.host.deadline import within
from gpuserved.router import params
from gpuserved.router.admission import Asked
from gpuserved.router.attempt import Attempt
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.body import SLICE_BYTES, Body
from gpuserved.router.http.head import upstream_request
from gpuserved.router.model import Lease, Model
from gpuserved.router.params import LARGE_BYTES
from gpuserved.router.pool import ConnectFailed
from gpuserved.router.replica import Replica
from gpuserved.router.request import Request

STALE_S = 1.0
"""A reused connection that ends sooner than this after a request, without a byte, was being closed already."""
SUSPECT_HOLD_S = 1.0
"""A suspect of a second crash whose answer has begun keeps the next one waiting for so long, or until it is whole: a short
stream is not cut by the culprit.
"""
UNREACHABLE_PAUSE_S = 0.1
"""Between two tries where the only replica is merely unreachable and stays in rotation."""

_WITHOUT_BODY = frozenset({"GET", "HEAD"})

log = logging.getLogger(__name__)


class Tries:
    """Holds at most one lease and one attempt, and gives back what it holds when it is closed. Most requests need one try, and no
    task: `at_once`. What must wait is in `run`: the queue, a new connection, proof of a death, the next try.
    """

    __slots__ = (
        "_attempt", "_avoid", "_context", "_deaths", "_lease", "_loop", "_request", "_serial", "_suspect_of", "_unreachable_since",
        "replays", "replica_id", "sent_at",
    )  # fmt: skip

    def __init__(self, context: Context, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._request = request
        self._loop = loop
        self._lease: Lease | None = None
        self._attempt: Attempt | None = None
        self._avoid: frozenset[Replica] = frozenset()
        self._deaths = 0
        self._serial = False
        self._suspect_of: Model | None = None
        """The model of whose suspects of a second crash it is the one that may run."""
        self._unreachable_since: float | None = None
        self.sent_at = 0.0
        """Loop time; 0: not yet."""
        self.replica_id: str | None = None
        """Who was asked last."""
        self.replays = 0

    def at_once(self, asked: Asked, known: Callable[[], object]) -> bool:
        """Send it where a replica takes it now and a connection stands ready. False: something must be waited for, in `run`.

        :param known: called, at once or later, when this try has an answer or will never have one.
        """
        request = self._request
        if asked.prefer is not None or request.deadline is not None or request.body.size > SLICE_BYTES:
            return False
        self._lease = lease = asked.model.lease_at_once(asked.ask)
        if lease is None:
            return False
        upstream = lease.replica.pool.idle(request.arrived_at)
        if upstream is None:
            return False
        head, body = self._request_for(asked, lease)
        self._attempt = attempt = Attempt(upstream)
        self.sent_at = request.arrived_at
        self.replica_id = lease.replica.id
        upstream.write(head + body.view() if body.size else head)
        if body is not request.body:
            body.close()
        attempt.when_known(known)
        return True

    @property
    def answered(self) -> bool:
        """The present try has an answer for the client."""
        attempt = self._attempt
        return attempt is not None and not attempt.lost and not attempt.blames_server()

    def settle(self) -> tuple[Lease, Attempt]:
        """What has an answer for the client, and is the caller's to give back from now on."""
        lease, attempt = self._lease, self._attempt
        assert lease is not None
        assert attempt is not None
        self._lease = self._attempt = None
        if self._suspect_of is not None:
            self._loop.call_later(SUSPECT_HOLD_S, self._release_suspects)
        return lease, attempt

    def close(self) -> None:
        """No more tries: give everything back."""
        self._release_suspects()
        self._drop_attempt()
        self._release_lease()

    async def run(self, asked: Asked) -> None:
        """Try until there is an answer to `settle` for. A try that was begun at once is taken up where it stands.

        :raises HttpError: there will be none.
        """
        again = False
        while True:
            if self._serial and self._suspect_of is None:
                await self._wait_as_suspect(asked.model)
            if self._lease is None:
                self._lease = await self._take_lease(asked, again=again)
            if await self._once(asked, self._lease):
                return
            self._release_lease()
            again = True

    async def _take_lease(self, asked: Asked, *, again: bool) -> Lease:
        request = self._request
        if asked.prefer is not None and (asked.only or not again):
            lease = asked.model.lease_on(asked.prefer, asked.ask, only=asked.only)
            if lease is not None:
                return lease
        if asked.only:
            raise errors.no_response(request.match.id or "")
        return await asked.model.lease(
            ask=asked.ask, avoid=self._avoid, deadline=request.deadline, again=again, tenant=request.tenant
        )

    async def _once(self, asked: Asked, lease: Lease) -> bool:
        """One try. True: there is an answer for the client. False: try again.

        :raises HttpError: it is over, and nothing was sent yet.
        """
        failure = await self._first(asked, lease)
        if failure is None:
            return True
        decision = self._judge(failure, asked, lease.replica)
        if decision.replay:
            self._drop_attempt()
            await self._before_next(failure, asked.model)
            return False
        if failure is Failure.SERVER_ERROR:
            return True
        request = self._request
        self._context.poison.remember(request.head.path, request.body, self._deaths, self._loop.time())
        if self._deaths >= DEATHS_MAX:
            raise errors.blocked(self._deaths)
        raise errors.replica_failed(decision.why)

    def _judge(self, failure: Failure, asked: Asked, replica: Replica) -> Decision:
        request = self._request
        self._avoid |= {replica}
        now = self._loop.time()
        decision = decide(
            failure, begun=False, body_bytes=request.body.size, deaths=self._deaths,
            stored=asked.params is not None and asked.params.stored and request.match.route.stores,
            other_ready=asked.model.other_ready(self._avoid),
            time_left_s=float("inf") if request.deadline is None else request.deadline - now,
        )  # fmt: skip
        if decision.replay and decision.draws and not self._context.budget.withdraw(now):
            decision = Decision(False, why="the retry budget is spent")
        self._serial = decision.serial
        if decision.replay:
            self._context.metrics.replayed(asked.model.name, failure.value)
            self.replays += 1
        log.warning(
            "request %s: %s on %s: %s", request.id.decode(), failure.value, replica.id,
            "sent again" if decision.replay else decision.why,
        )  # fmt: skip
        return decision

    async def _before_next(self, failure: Failure, model: Model) -> None:
        """A replica that is merely unreachable stays in rotation when it is the last: do not spin on it."""
        if failure is not Failure.CONNECT:
            self._unreachable_since = None
            return
        now = self._loop.time()
        if self._unreachable_since is None:
            self._unreachable_since = now
        if now - self._unreachable_since > model.queue_timeout_s:
            raise errors.none_ready(model.name)
        if not model.other_ready(self._avoid):
            await asyncio.sleep(UNREACHABLE_PAUSE_S)

    # One try.

    async def _first(self, asked: Asked, lease: Lease) -> Failure | None:
        """Send it and wait until it is known what kind of answer comes; None: one for the client."""
        replica = lease.replica
        attempt = self._attempt
        fresh = False
        while True:
            if attempt is None:
                try:
                    upstream = await replica.pool.take(self._loop.time(), fresh=fresh)
                except ConnectFailed as error:
                    replica.failed(Signal.DEAD if error.proof else Signal.UNREACHABLE, "connect")
                    return self._sent_failure(dead=error.proof) if fresh else Failure.CONNECT
                attempt = self._attempt = Attempt(upstream)
                self.sent_at = self._loop.time()
                self.replica_id = replica.id
                await self._send_and_wait(asked, lease, attempt)
            if fresh or not self._was_stale(attempt):
                return await self._verdict(attempt, replica)
            fresh, attempt = True, None

    def _was_stale(self, attempt: Attempt) -> bool:
        upstream = attempt.upstream
        ended_unread = upstream.reused and attempt.lost and not upstream.read_any
        return ended_unread and self._loop.time() - self.sent_at < STALE_S

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

    async def _send_and_wait(self, asked: Asked, lease: Lease, attempt: Attempt) -> None:
        request = self._request
        name = _renamed(asked, lease)
        if name is None or request.body.size <= LARGE_BYTES or asked.params is None:
            head, body = self._request_for(asked, lease)
        else:
            body = await params.large_with_model(request.body, asked.params, name)
            head = self._head_for(body)
        known = self._loop.create_future()
        attempt.when_known(lambda: None if known.done() else known.set_result(None))
        try:
            await self._send(attempt, head, body, known)
            await self._wait(known)
        finally:
            if body is not request.body:
                body.close()

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
        finally:
            sending.cancel()

    async def _wait(self, known: asyncio.Future[None]) -> None:
        if self._request.deadline is None:
            await known
            return
        await asyncio.wait({known}, timeout=self._left())
        if not known.done():
            raise errors.deadline()

    def _left(self) -> float | None:
        """Seconds until the client gives up, if it said when."""
        deadline = self._request.deadline
        return None if deadline is None else max(0.0, deadline - self._loop.time())

    def _request_for(self, asked: Asked, lease: Lease) -> tuple[bytes, Body]:
        """The bytes for one replica: the client's own, but for the model's name where the engine has another."""
        body, name = self._request.body, _renamed(asked, lease)
        if name is not None and asked.params is not None:
            body = Body()
            body.append(params.with_model(self._request.body.view(), asked.params, name))
        return self._head_for(body), body

    def _head_for(self, body: Body) -> bytes:
        """The head of the request that a replica gets with this body."""
        request = self._request
        return upstream_request(
            request.head, target=request.head.target, request_id=request.id, peer=request.forwarded_for,
            content_length=None if request.head.method in _WITHOUT_BODY and not body.size else body.size,
        )  # fmt: skip

    # What is held.

    def _drop_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.drop()

    def _release_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    async def _wait_as_suspect(self, model: Model) -> None:
        """Wait until no other suspect of a second crash runs."""
        try:
            await within(model.suspects.acquire(), self._left(), lambda _: model.suspects.release())
        except (asyncio.TimeoutError, TimeoutError):
            raise errors.deadline() from None
        self._suspect_of = model

    def _release_suspects(self) -> None:
        """The next suspect may run."""
        model, self._suspect_of = self._suspect_of, None
        if model is not None:
            model.suspects.release()


def _renamed(asked: Asked, lease: Lease) -> str | None:
    """What this replica calls the model, where that is not what the client does."""
    name, seen = lease.upstream_model, asked.params
    return name if seen is not None and name != seen.model else None
