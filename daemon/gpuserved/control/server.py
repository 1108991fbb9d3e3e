"""The control API's server: HTTP/1.1 and JSON on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gpuserved.api.errors import Denied, GpuserveError, Internal, Invalid, NotFound, TimedOut
from gpuserved.api.wire import BODY_MAX_BYTES, PREFIX, READ_ONLY_HEADER
from gpuserved.control.handlers import READ_ONLY, Handlers, answer
from gpuserved.control.loghandlers import LogHandlers
from gpuserved.control.peer import Peer, identify, may_operate, operate_gid
from gpuserved.control.port import FleetPort
from gpuserved.host.deadline import within

HEADER_TIMEOUT_S = 5.0
"""A client that has sent no whole request head by then is dropped."""
BODY_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 290.0
"""Less than the client's own patience, so that it is told; learning a vLLM's flags in `apply` may take minutes."""
CONNECTIONS_MAX = 256
_BACKLOG = 64
_log = logging.getLogger(__name__)


class ControlServer:
    """Serves one fleet on one socket. The caller holds the daemon's lock, so that a socket found there is stale."""

    def __init__(
        self,
        fleet: FleetPort,
        path: Path,
        *,
        system: bool = False,
        header_timeout_s: float = HEADER_TIMEOUT_S,
    ) -> None:
        """:param system: a daemon of the host: the operate group may connect too."""
        self._path = path
        self._header_timeout_s = header_timeout_s
        self._operators = operate_gid() if system else None
        self._mode_umask = 0o117 if system else 0o177
        self._routes = [
            *Handlers(fleet, self._may_operate).routes(PREFIX),
            *LogHandlers(fleet).routes(PREFIX),
        ]
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.AbstractServer | None = None
        self._silent: set[RequestHandler] = set()
        self._mutations: set[asyncio.Task[web.StreamResponse]] = set()

    async def start(self) -> None:
        """Bind and serve."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_MAX_BYTES)
        app.add_routes(self._routes)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        bound = bind_private(self._path, umask=self._mode_umask, gid=self._operators)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._connection, sock=bound, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Stop listening, hang up on everybody, and remove the socket: for clients, the sign that all is gone."""
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._mutations):
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
        asyncio.get_running_loop().call_later(self._header_timeout_s, self._drop_if_silent, handler)
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
        """Everything a handler need not think of: who asks, deadlines, and errors as bodies."""
        self._silent.discard(request.protocol)
        try:
            return await self._admitted(request, handler)
        except GpuserveError as error:
            return _refusal(error)
        except web.HTTPException as error:
            return _refusal(_from_http(error, request))
        except Exception as error:
            if isinstance(error, ConnectionError) and _has_left(request):
                _log.debug("control call %s %s: its client has left", request.method, request.path)
                return web.Response()
            _log.exception("control call %s %s failed", request.method, request.path)
            return _refusal(
                Internal("the daemon failed to do this", "its log has the details: gpuserve logs --daemon")
            )

    async def _admitted(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        mutates = request.method != "GET" and request.path.removeprefix(PREFIX) not in READ_ONLY
        if mutates:
            peer = _peer(request)
            if request.headers.get(READ_ONLY_HEADER):
                raise Denied("this client is read-only", "attach again without --read-only")
            if not self._may_operate(request):
                raise Denied(
                    f"user {peer.uid} may look but not operate", "join the group gpuserve, or use sudo"
                )
            _log.info("control: %s %s by uid %d, PID %d", request.method, request.path, peer.uid, peer.pid)
        if request.method != "GET":
            await _read_body(request)
        if not mutates:
            return await handler(request)
        # A mutation goes on when its client hangs up: half of it done would be worse than all of it.
        task = asyncio.ensure_future(_run(handler, request))
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        try:
            return await within(asyncio.shield(task), REQUEST_TIMEOUT_S)
        except asyncio.TimeoutError:
            task.add_done_callback(_unheard)
            raise TimedOut(
                f"not done within {REQUEST_TIMEOUT_S:g} s; it goes on", "look with gpuserve status"
            ) from None
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _unheard(task: asyncio.Task[web.StreamResponse]) -> None:
    """How a change went whose client did not wait for it: a refusal is no error of the daemon's."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, GpuserveError):
        _log.info("control: refused, and its client had left: %s", error.message)
    elif error is not None:
        _log.error("a control call failed, and its client had left", exc_info=error)


async def _run(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], request: web.Request
) -> web.StreamResponse:
    return await handler(request)


async def _read_body(request: web.Request) -> None:
    try:
        await within(request.read(), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise TimedOut(f"the request's body did not come within {BODY_TIMEOUT_S:g} s") from None


def _peer(request: web.Request) -> Peer:
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None:
        raise Denied("the connection is gone")
    return identify(connection)


def _refusal(error: GpuserveError) -> web.Response:
    return answer(error.body(), status=error.http_status)


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


def bind_private(path: Path, *, umask: int, gid: int | None) -> socket.socket:
    """A Unix socket that is private from its first moment: the umask is set before bind, never chmod after.

    :param gid: the group that may connect.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(umask)
    try:
        bound.bind(os.fspath(path))
        if gid is not None:
            with contextlib.suppress(
                PermissionError
            ):  # an unprivileged daemon outside the group serves its own user
                os.chown(path, -1, gid, follow_symlinks=False)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(previous)
    bound.setblocking(False)
    return bound
