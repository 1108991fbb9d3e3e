"""One request's life: what it holds, its answer, its end."""

from __future__ import annotations

import asyncio
import logging
import time

from gpuserved.router.accesslog import AccessLog, Record
from gpuserved.router.admission import Asked
from gpuserved.router.attempt import Attempt
from gpuserved.router.client_connection import ClientConnection
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.sse import REPLICA_DIED, ROUTER_ENDED
from gpuserved.router.model import Lease
from gpuserved.router.request import Request
from gpuserved.router.response import IdTap, Response, UsageTap
from gpuserved.router.tries import Tries

log = logging.getLogger(__name__)


class Exchange:
    """From a whole request to the end of its answer; serves it in a task of its own only where something must be waited for.

    `_end` gives everything back, once, however the request ends.
    """

    __slots__ = (
        "_asked", "_attempt", "_client", "_context", "_ended", "_first_byte_at", "_lease", "_loop", "_passed_bytes", "_request", "_response",
        "_status", "_task", "_tries", "_usage", "_was_cut",
    )  # fmt: skip

    def __init__(self, context: Context, client: ClientConnection, request: Request) -> None:
        self._context = context
        self._client = client
        self._request = request
        self._loop = client.loop
        self._tries = Tries(context, request, client.loop)
        self._asked: Asked | None = None
        self._lease: Lease | None = None
        self._attempt: Attempt | None = None
        """Of the answer that is the client's."""
        self._response: Response | None = None
        self._usage: UsageTap | None = None
        self._status = 499
        self._first_byte_at = 0.0
        """Loop time; 0: not yet."""
        self._passed_bytes = 0
        self._was_cut = False
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    # Flow control: the client's transport tells us.

    def client_full(self) -> None:
        if self._attempt is not None:
            self._attempt.upstream.pause_reading()

    def client_ready(self) -> None:
        if self._attempt is not None:
            self._attempt.upstream.resume_reading()

    def start(self) -> None:
        """Serve it: right here as far as nothing must be waited for, from there on in a task. Never raises."""
        self._context.in_flight.begin(self._request.id, self)
        try:
            self._asked = asked = self._context.admission.read(self._request)
            if asked is None or not self._tries.at_once(asked, self._known):
                self._wait()
        except HttpError as error:
            self._fail(error)
        except Exception as error:
            self._broken(error)

    def cancel(self) -> None:
        """Its client left: an engine at work for it stops."""
        if self._task is None or not self._task.cancel():
            self._end()

    def give_up(self) -> None:
        """The router ends: a stream that has begun ends with an error event, anything else as if its client had left."""
        response = self._response
        if self._attempt is None or response is None:
            self.cancel()
            return
        self._was_cut = True
        response.cut(ROUTER_ENDED)
        self._end()

    def _known(self) -> None:
        """What was sent at once has an answer, or will never have one."""
        try:
            if self._tries.answered:
                self._commit()
            else:
                self._wait()
        except Exception as error:
            self._broken(error)

    def _wait(self) -> None:
        self._task = task = self._loop.create_task(self._run())
        task.add_done_callback(self._waited)

    async def _run(self) -> None:
        try:
            if self._asked is None:
                self._asked = await self._context.admission.read_large(self._request)
            await self._tries.run(self._asked)
            self._commit()
        except HttpError as error:
            self._fail(error)
        except Exception as error:
            self._broken(error)

    def _waited(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self._end()

    def _commit(self) -> None:
        """The answer that has begun is the client's: from here on it passes as it comes, and no task is needed."""
        request, context = self._request, self._context
        self._lease, self._attempt = lease, attempt = self._tries.settle()
        head, replica, model = attempt.head, lease.replica, lease.model
        assert head is not None
        request.body.close()
        lease.begun(streams=head.sse)
        self._status = head.status
        if head.status < 500:
            replica.answered()
        route, tap = request.match.route, None
        if route.stores:
            tap = IdTap(lambda identity: context.affinity.learn(identity, model, replica))
        if request.account is not None and head.status == 200:
            self._usage = UsageTap(sse=head.sse)
        self._response = response = Response(
            self._client, head, http10=request.head.http10, style=route.sse, tap=tap, usage=self._usage,
            close=not request.head.keep_alive or context.drain.begun,
        )  # fmt: skip
        self._first_byte_at = now = self._loop.time()
        context.metrics.began(model.name, now - request.arrived_at)
        if request.head.method == "HEAD":
            response.head_alone(request_id=request.id, replica=replica.wire_id)
            self._end()
        else:
            attempt.commit(response, self._answer_ended, request_id=request.id, replica=replica.wire_id)

    def _answer_ended(self) -> None:
        """Nothing more comes of the answer."""
        attempt, lease, response = self._attempt, self._lease, self._response
        if attempt is None or lease is None or response is None:
            return
        self._attempt = None
        self._passed_bytes = attempt.upstream.passed_bytes
        try:
            if attempt.lost:
                self._was_cut = True
                self._context.metrics.cut(lease.model.name)
                identity = self._request.id.decode()
                log.warning("request %s: replica %s ended its answer early", identity, lease.replica.id)
                response.cut(REPLICA_DIED)
                lease.replica.closed_early()
            else:
                lease.replica.pool.give_back(attempt.upstream, self._loop.time())
                response.finish()
        except Exception as error:
            self._broken(error)
            return
        self._end()

    def _fail(self, error: HttpError) -> None:
        """It ends with an answer of our own."""
        self._status = error.status
        self._client.refuse(error, self._request.id)
        self._end()

    def _broken(self, error: Exception) -> None:
        """An error of ours costs this request alone."""
        log.error("request %s failed in the router", self._request.id.decode(), exc_info=error)
        self._fail(errors.internal())

    def _end(self) -> None:
        """Give everything back."""
        if self._ended:
            return
        self._ended = True
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._passed_bytes = attempt.upstream.passed_bytes
            attempt.drop()
        self._tries.close()
        if self._lease is not None:
            self._lease.release()
        request, context = self._request, self._context
        request.body.close()
        if request.account is not None and self._usage is not None:
            request.account.charge(*self._usage.tokens(request.body.size), self._loop.time())
        context.in_flight.end(request.id)
        context.metrics.ended("" if self._asked is None else self._asked.model.name, self._status)
        if context.access_log is not None:
            self._note(context.access_log)

    def _note(self, access_log: AccessLog) -> None:
        request, tries, response = self._request, self._tries, self._response
        began, sent, first = request.arrived_at, tries.sent_at, self._first_byte_at
        duration_s = self._loop.time() - began
        access_log.add(
            Record(
                time=round(time.time() - duration_s, 3), request_id=request.id.decode(), peer=request.client,
                method=request.head.method, path=request.head.path, model=None if self._asked is None else self._asked.model.name,
                replica=tries.replica_id, status=self._status,
                bytes=0 if response is None else response.sent_bytes + self._passed_bytes,
                queue_s=round(sent - began, 6) if sent else None, ttft_s=round(first - began, 6) if first else None,
                duration_s=round(duration_s, 6), replays=tries.replays, cut=self._was_cut,
                key=None if request.account is None else request.account.name,
            )
        )  # fmt: skip
