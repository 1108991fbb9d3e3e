"""One handler per call of the control API. They translate; what happens is the fleet's affair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web

import gpuserved
from gpuserved.api.errors import Invalid
from gpuserved.api.gpus import GpusRequest
from gpuserved.api.inspect import EventsView
from gpuserved.api.plan import PlanRequest
from gpuserved.api.types import (
    PROTOCOL_VERSION,
    ApplyProfileRequest,
    ApplyRequest,
    ReplicasRequest,
    ScaleRequest,
    VersionView,
)
from gpuserved.api.upgrade import UpgradeRequest
from gpuserved.api.wire import PROTOCOL_HEADER
from gpuserved.control.port import VERBS, FleetPort

READ_ONLY = frozenset({"/plan"})
"""POSTs that change nothing: a plan's question does not fit into a URL."""
HEADERS = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
T = TypeVar("T")


def answer(body: msgspec.Struct, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=HEADERS, content_type="application/json"
    )


class Handlers:
    """The calls, over one fleet."""

    def __init__(self, fleet: FleetPort, may_operate: Callable[[web.Request], bool]) -> None:
        self._fleet = fleet
        self._may_operate = may_operate

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get(f"{prefix}/version", self._version),
            web.get(f"{prefix}/status", self._status),
            web.get(f"{prefix}/events", self._events),
            web.get(f"{prefix}/events/recent", self._recent_events),
            web.get(f"{prefix}/profiles", self._profiles),
            web.get(f"{prefix}/profiles/{{profile}}/diff", self._diff),
            web.get(f"{prefix}/replicas/{{replica}}", self._detail),
            web.get(f"{prefix}/replicas/{{replica}}/crash", self._crash),
            web.post(f"{prefix}/profiles/{{profile}}/apply", self._apply_profile),
            web.post(f"{prefix}/apply", self._apply),
            web.post(f"{prefix}/plan", self._plan),
            web.post(f"{prefix}/scale", self._scale),
            web.post(f"{prefix}/gpus/quarantine", self._quarantine),
            web.post(f"{prefix}/gpus/release", self._release),
            web.post(f"{prefix}/reload", self._reload),
            web.post(f"{prefix}/shutdown", self._shutdown),
            web.post(f"{prefix}/upgrade", self._upgrade),
            web.post(f"{prefix}/routers/replace", self._replace_routers),
            *(web.post(f"{prefix}/replicas/{verb}", self._act) for verb in VERBS),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        view = VersionView(
            version=gpuserved.__version__, protocol=PROTOCOL_VERSION, may_operate=self._may_operate(request)
        )
        return answer(view)

    async def _status(self, request: web.Request) -> web.Response:
        del request
        await self._fleet.look()
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

    async def _quarantine(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.quarantine_gpus(await _body(request, GpusRequest)))

    async def _release(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.release_gpus(await _body(request, GpusRequest)))

    async def _recent_events(self, request: web.Request) -> web.Response:
        since, newest = number(request, "since"), number(request, "n")
        found = self._fleet.inspection.events().events
        if since is not None:
            found = [event for event in found if event.at >= since]
        if newest is not None:
            found = found[max(0, len(found) - int(newest)) :]
        return answer(EventsView(events=found))

    async def _profiles(self, request: web.Request) -> web.Response:
        del request
        return answer(self._fleet.inspection.profiles())

    async def _detail(self, request: web.Request) -> web.Response:
        return answer(self._fleet.inspection.detail(request.match_info["replica"]))

    async def _crash(self, request: web.Request) -> web.Response:
        previous = flag(request, "previous", default=False)
        return answer(self._fleet.inspection.crash(request.match_info["replica"], previous))

    async def _diff(self, request: web.Request) -> web.Response:
        name = request.match_info["profile"]
        return answer(await self._fleet.inspection.apply_profile(name, dry_run=True, generation=None))

    async def _apply_profile(self, request: web.Request) -> web.Response:
        wish = await _body(request, ApplyProfileRequest)
        name = request.match_info["profile"]
        result = await self._fleet.inspection.apply_profile(name, dry_run=False, generation=wish.generation)
        return answer(result)

    async def _reload(self, request: web.Request) -> web.Response:
        del request
        return answer(await self._fleet.reload())

    async def _upgrade(self, request: web.Request) -> web.Response:
        return answer(await self._fleet.upgrade(await _body(request, UpgradeRequest)), status=202)

    async def _replace_routers(self, request: web.Request) -> web.Response:
        del request
        return answer(await self._fleet.replace_routers())

    async def _shutdown(self, request: web.Request) -> web.Response:
        await self._fleet.shutdown(
            drain=flag(request, "drain", default=True), forget=flag(request, "forget", default=True)
        )
        return web.Response(status=202, headers=HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        encoder = msgspec.json.Encoder()
        with self._fleet.subscribe() as events:
            async for event in events:
                await response.write(encoder.encode(event) + b"\n")
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


def number(request: web.Request, name: str) -> float | None:
    """A query parameter that is a number, not negative; None: it is not there."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Invalid(f"{name}={text[:20]!r}: expected a number, not negative")
    return value


def flag(request: web.Request, name: str, *, default: bool) -> bool:
    """A query parameter that is 0 or 1."""
    text = request.query.get(name)
    if text is None:
        return default
    if text not in {"0", "1"}:
        raise Invalid(f"{name}={text!r}: expected 0 or 1")
    return text == "1"
