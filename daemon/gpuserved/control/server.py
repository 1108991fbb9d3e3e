"""The control API's server: HTTP/1.1 and JSON on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gpuserved.api.errors import Denied, GpuserveError, Internal, Invalid, NotFound, TimedOut
from gpuserved.api.types import PROTOCOL_VERSION
from gpuserved.api.wire import BODY_MAX_BYTES, PREFIX, PROTOCOL_HEADER, READ_ONLY_HEADER
from gpuserved.control.handlers import Handlers
from gpuserved.control.peer import Peer, bind, identify, may_operate, operate_gid
from gpuserved.control.port import FleetPort
from gpuserved.control.routes import Answer, Limits, Route, Stream
from gpuserved.host.deadline import within

CONNECTIONS_MAX = 256
HEADERS = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
_BACKLOG = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Change:
    """One that is under way."""

    what: str
    since: float
    """`time.monotonic()`."""


class ControlServer:
    """Serves one fleet on one socket. The caller holds the daemon's lock, so that a socket found there is stale."""

    def __init__(
        self, fleet: FleetPort, path: Path, *, system: bool = False, limits: Limits | None = None
    ) -> None:
        """:param system: a daemon of the host: members of the operate group may connect, and operate."""
        self._path = path
        self._limits = limits or Limits()
        self._operators = operate_gid() if system else None
        self._routes = Handlers(fleet, self._may_operate).routes(self._limits)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.AbstractServer | None = None
        self._silent: set[RequestHandler] = set()
        self._changes: dict[asyncio.Task[Answer], _Change] = {}

    async def start(self) -> None:
        """Bind and serve."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_MAX_BYTES)
        for route in self._routes:
            serve = functools.partial(self._serve, route)
            if route.method == "GET":
                app.router.add_get(PREFIX + route.path, serve, allow_head=True)
            else:
                app.router.add_route(route.method, PREFIX + route.path, serve)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        bound = bind(self._path, operators=self._operators)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._connection, sock=bound, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Stop listening, hang up on everybody, and remove the socket: for clients, the sign that all is gone."""
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._changes):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _may_operate(self, request: web.Request) -> bool:
        return may_operate(_peer(request), owner_uid=os.geteuid(), operators=self._operators)

    def _connection(self) -> RequestHandler:
        """The protocol of one new connection, with a deadline for its first request head.

        aiohttp has no such deadline; between later requests its keep-alive limit does the same.
        """
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        handler = server()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(self._limits.head_s, self._drop_if_silent, handler)
        if len(server.connections) >= CONNECTIONS_MAX:
            asyncio.get_running_loop().call_soon(self._drop_if_silent, handler)
        return handler

    def _drop_if_silent(self, handler: RequestHandler) -> None:
        if handler in self._silent:
            self._silent.discard(handler)
            if handler.transport is not None:
                handler.transport.abort()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors become bodies, aiohttp's own and ours alike."""
        self._silent.discard(request.protocol)
        try:
            return await handler(request)
        except GpuserveError as error:
            return _json(error.body(), error.http_status)
        except web.HTTPException as error:
            refused = _from_http(error, request)
            return _json(refused.body(), refused.http_status)
        except Exception as error:
            if isinstance(error, ConnectionError) and _has_left(request):
                _log.debug("control call %s %s: its client has left", request.method, request.path)
                return web.Response()
            _log.exception("control call %s %s failed", request.method, request.path)
            failed = Internal(
                "the daemon failed to do this", "its log has the details: gpuserve logs --daemon"
            )
            return _json(failed.body(), failed.http_status)

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Everything a handler need not think of: who asks, its deadline, and the form of its answer."""
        if route.changes:
            self._admit(request)
        if route.method != "GET":
            await self._read_body(request)
        answer = await (self._change(route, request) if route.changes else self._read(route, request))
        if isinstance(answer, Stream):
            return await _send(answer, request)
        return (
            web.Response(status=route.status, headers=HEADERS)
            if answer is None
            else _json(answer, route.status)
        )

    def _admit(self, request: web.Request) -> None:
        peer = _peer(request)
        if request.headers.get(READ_ONLY_HEADER):
            raise Denied("this client is read-only", "attach again without --read-only")
        if not self._may_operate(request):
            raise Denied(f"user {peer.uid} may look but not operate", "join the group gpuserve, or use sudo")
        _log.info("control: %s %s by uid %d, PID %d", request.method, request.path, peer.uid, peer.pid)

    async def _read_body(self, request: web.Request) -> None:
        try:
            await within(request.read(), self._limits.body_s)
        except asyncio.TimeoutError:
            raise TimedOut(f"the request's body did not come within {self._limits.body_s:g} s") from None

    async def _read(self, route: Route, request: web.Request) -> Answer:
        try:
            return await within(route.answer(request), route.limit_s)
        except asyncio.TimeoutError:
            raise TimedOut(
                f"{_name(request)}: no answer within {route.limit_s:g} s; {self._under_way()}",
                "try again; gpuserve logs --daemon says what the daemon does",
            ) from None

    async def _change(self, route: Route, request: web.Request) -> Answer:
        """A change goes on when its client hangs up: half of it done would be worse than all of it."""

        async def run() -> Answer:
            return await route.answer(request)

        task = asyncio.ensure_future(run())
        self._changes[task] = _Change(_name(request), time.monotonic())
        task.add_done_callback(self._changes.pop)
        try:
            return await within(asyncio.shield(task), route.limit_s)
        except asyncio.TimeoutError:
            task.add_done_callback(_unheard)
            raise TimedOut(
                f"{_name(request)}: not done within {route.limit_s:g} s, it goes on; {self._under_way(task)}",
                "look with gpuserve status",
            ) from None
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise

    def _under_way(self, but: asyncio.Task[Answer] | None = None) -> str:
        """The changes that an answer may be waiting for, the oldest first."""
        now = time.monotonic()
        found = [
            f"{one.what} ({now - one.since:.0f} s)" for task, one in self._changes.items() if task is not but
        ]
        return f"under way{' beside it' if but else ''}: {', '.join(found) or 'nothing else'}"


def _name(request: web.Request) -> str:
    return request.path.removeprefix(PREFIX + "/")


def _json(body: msgspec.Struct, status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=HEADERS, content_type="application/json"
    )


async def _send(stream: Stream, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={**HEADERS, "Content-Type": stream.content_type})
    await response.prepare(request)
    if request.method != "HEAD":
        async with contextlib.aclosing(stream.blocks()) as blocks:
            async for block in blocks:
                await response.write(block)
    await response.write_eof()
    return response


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _unheard(task: asyncio.Task[Answer]) -> None:
    """How a change went whose client did not wait for it: a refusal is no error of the daemon's."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, GpuserveError):
        _log.info("control: refused, and its client had left: %s", error.message)
    elif error is not None:
        _log.error("a control call failed, and its client had left", exc_info=error)


def _peer(request: web.Request) -> Peer:
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None:
        raise Denied("the connection is gone")
    return identify(connection)


def _from_http(error: web.HTTPException, request: web.Request) -> GpuserveError:
    """What aiohttp itself refuses (unknown path, body too large), in our words."""
    if error.status in {404, 405}:
        return NotFound(
            f"no such call: {request.method} {request.path}", "the daemon may be older than this client"
        )
    if error.status == 413:
        return Invalid(
            f"the request is larger than {BODY_MAX_BYTES // 1024**2} MiB", "apply fewer profiles at once"
        )
    return Invalid(f"the request cannot be read: {error.reason}")
