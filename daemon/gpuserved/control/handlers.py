"""One handler per call of the control API. They translate; what happens is the fleet's affair."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import web

import gpuserved
from gpuserved.api.errors import Invalid, NotFound
from gpuserved.api.types import (
    PROTOCOL_VERSION,
    ApplyRequest,
    PlanRequest,
    ReplicasRequest,
    ScaleRequest,
    VersionView,
)
from gpuserved.api.wire import LOG_LINES_MAX, PROTOCOL_HEADER
from gpuserved.control.logs import Paths, follow, last_lines
from gpuserved.control.port import VERBS, FleetPort

READ_ONLY = frozenset({"/plan"})
"""POSTs that change nothing: a plan's question does not fit into a URL."""
_HEADERS = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
_DEFAULT_LINES = 100
T = TypeVar("T")


def answer(body: msgspec.Struct, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=_HEADERS, content_type="application/json"
    )


class Handlers:
    """The calls, over one fleet."""

    def __init__(self, fleet: FleetPort) -> None:
        self._fleet = fleet

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get(f"{prefix}/version", self._version),
            web.get(f"{prefix}/status", self._status),
            web.get(f"{prefix}/events", self._events),
            web.get(f"{prefix}/daemon/logs", self._daemon_logs),
            web.get(f"{prefix}/replicas/{{replica}}/logs", self._logs),
            web.post(f"{prefix}/apply", self._apply),
            web.post(f"{prefix}/plan", self._plan),
            web.post(f"{prefix}/scale", self._scale),
            web.post(f"{prefix}/reload", self._reload),
            web.post(f"{prefix}/shutdown", self._shutdown),
            *(web.post(f"{prefix}/replicas/{verb}", self._act) for verb in VERBS),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        del request
        return answer(VersionView(version=gpuserved.__version__, protocol=PROTOCOL_VERSION))

    async def _status(self, request: web.Request) -> web.Response:
        del request
        return answer(self._fleet.status())

    async def _apply(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.apply(await _body(request, ApplyRequest)))

    async def _plan(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.plan(await _body(request, PlanRequest)))

    async def _act(self, request: web.Request) -> web.Response:
        verb = request.path.rsplit("/", 1)[1]
        return answer(await self._fleet.act(verb, await _body(request, ReplicasRequest)))

    async def _scale(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.scale(await _body(request, ScaleRequest)))

    async def _reload(self, request: web.Request) -> web.Response:
        del request
        return answer(await self._fleet.reload())

    async def _shutdown(self, request: web.Request) -> web.Response:
        await self._fleet.shutdown(_flag(request, "drain", default=True))
        return web.Response(status=202, headers=_HEADERS)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        replica = request.match_info["replica"]
        previous = _flag(request, "previous", default=False)
        if previous and _flag(request, "follow", default=False):
            raise Invalid("a log of the past cannot be followed", "use --previous or -f, not both")
        return await _send_log(request, lambda: self._fleet.log_path(replica, previous))

    async def _daemon_logs(self, request: web.Request) -> web.StreamResponse:
        return await _send_log(request, self._fleet.daemon_log)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        encoder = msgspec.json.Encoder()
        with self._fleet.subscribe() as events:
            try:
                async for event in events:
                    await response.write(encoder.encode(event) + b"\n")
            except ConnectionError:
                return response
        await response.write_eof()
        return response


async def _body(request: web.Request, kind: type[T]) -> T:
    raw = await request.read()
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise Invalid(
            f"the request is not understood: {error}", "client and daemon may be of different releases"
        ) from None


def _flag(request: web.Request, name: str, *, default: bool) -> bool:
    text = request.query.get(name)
    if text is None:
        return default
    if text not in {"0", "1"}:
        raise Invalid(f"{name}={text!r}: expected 0 or 1")
    return text == "1"


def _line_count(request: web.Request) -> int:
    text = request.query.get("n", str(_DEFAULT_LINES))
    if not text.isascii() or not text.isdigit() or int(text) > LOG_LINES_MAX:
        raise Invalid(f"n={text[:20]!r}: expected a number of lines from 0 to {LOG_LINES_MAX}")
    return int(text)


async def _send_log(request: web.Request, paths: Paths) -> web.StreamResponse:
    count = _line_count(request)
    following = _flag(request, "follow", default=False)
    known = paths()  # says that there is no such replica before the first byte
    if not following and not known:
        raise NotFound("nothing has been logged yet", "see gpuserve status")
    response = web.StreamResponse(headers=_HEADERS)
    response.content_type = "text/plain"
    response.charset = "utf-8"
    await response.prepare(request)
    try:
        if following:
            async for block in follow(paths, count):
                await response.write(block)
        else:
            for line in await asyncio.to_thread(last_lines, known, count):
                await response.write(line if line.endswith(b"\n") else line + b"\n")
        await response.write_eof()
    except ConnectionError:
        return response
    return response
