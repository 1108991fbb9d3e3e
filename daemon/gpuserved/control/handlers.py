"""The calls. They translate; what happens is the fleet's affair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
from aiohttp import web

import gpuserved
from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import Invalid, NotFound
from gpuserved.api.inspect import EventsView, LogBatch, LogPage, ProfilesView, ReplicaDetail
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.types import (
    PROTOCOL_VERSION,
    ActionResult,
    ApplyProfileRequest,
    ApplyRequest,
    ApplyResult,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    RouterView,
    ScaleRequest,
    Status,
    UpgradeAccepted,
    UpgradeRequest,
    VersionView,
)
from gpuserved.api.wire import LOG_LINES_MAX, LOG_SOURCES_MAX, PAGE_LINES_MAX
from gpuserved.control.logfeed import POLL_S, LogFeed, Sources
from gpuserved.control.logpage import Cursor, page
from gpuserved.control.logs import Paths, follow, last_lines
from gpuserved.control.port import FleetPort
from gpuserved.control.routes import Limits, Route, Stream, body, flag, line_count, number
from gpuserved.core.events import VERB_EVENTS, EventKind


class Handlers:
    """The calls, over one fleet."""

    def __init__(self, fleet: FleetPort, may_operate: Callable[[web.Request], bool]) -> None:
        self._fleet = fleet
        self._may_operate = may_operate

    def routes(self, limits: Limits) -> list[Route]:
        """The table."""
        read, change = limits.read_s, limits.change_s
        return [
            Route("GET", "/version", self._version, read),
            Route("GET", "/status", self._status, read),
            Route("GET", "/events", self._events, read),
            Route("GET", "/events/recent", self._recent_events, read),
            Route("GET", "/profiles", self._profiles, read),
            # Both may learn a vLLM's flags first, which takes minutes from a cold network disk.
            Route("GET", "/profiles/{profile}/diff", self._diff, change),
            Route("POST", "/plan", self._plan, change),
            Route("GET", "/replicas/{replica}", self._detail, read),
            Route("GET", "/replicas/{replica}/crash", self._crash, read),
            Route("GET", "/daemon/logs", self._daemon_logs, read),
            Route("GET", "/replicas/{replica}/logs", self._logs, read),
            Route("GET", "/logs/page", self._page, change),  # it may search gigabytes
            Route("GET", "/logs/follow", self._follow, read),
            Route("POST", "/profiles/{profile}/apply", self._apply_profile, change, changes=True),
            Route("POST", "/apply", self._apply, change, changes=True),
            Route("POST", "/scale", self._scale, change, changes=True),
            Route("POST", "/gpus/quarantine", self._quarantine, change, changes=True),
            Route("POST", "/gpus/release", self._release, change, changes=True),
            Route("POST", "/reload", self._reload, change, changes=True),
            Route("POST", "/shutdown", self._shutdown, change, changes=True, status=202),
            Route("POST", "/upgrade", self._upgrade, change, changes=True, status=202),
            Route("POST", "/routers/replace", self._replace_routers, change, changes=True),
            *(
                Route("POST", f"/replicas/{verb.value}", self._act, change, changes=True)
                for verb in EventKind
                if verb in VERB_EVENTS
            ),
        ]

    async def _version(self, request: web.Request) -> VersionView:
        return VersionView(
            version=gpuserved.__version__, protocol=PROTOCOL_VERSION, may_operate=self._may_operate(request)
        )

    async def _status(self, _request: web.Request) -> Status:
        await self._fleet.look()
        return self._fleet.status()

    async def _events(self, _request: web.Request) -> Stream:
        async def lines() -> AsyncGenerator[bytes, None]:
            encoder = msgspec.json.Encoder()
            with self._fleet.subscribe() as events:
                async for event in events:
                    yield encoder.encode(event) + b"\n"

        return Stream("application/x-ndjson", lines)

    async def _recent_events(self, request: web.Request) -> EventsView:
        since, newest = number(request, "since"), number(request, "n")
        found = self._fleet.inspection.events().events
        if since is not None:
            found = [event for event in found if event.at >= since]
        if newest is not None:
            found = found[max(0, len(found) - int(newest)) :]
        return EventsView(events=found)

    async def _profiles(self, _request: web.Request) -> ProfilesView:
        return self._fleet.inspection.profiles()

    async def _detail(self, request: web.Request) -> ReplicaDetail:
        return self._fleet.inspection.detail(request.match_info["replica"])

    async def _crash(self, request: web.Request) -> CrashCard:
        previous = flag(request, "previous", default=False)
        return self._fleet.inspection.crash(request.match_info["replica"], previous)

    async def _diff(self, request: web.Request) -> ApplyResult:
        name = request.match_info["profile"]
        return await self._fleet.inspection.apply_profile(name, dry_run=True, generation=None)

    async def _plan(self, request: web.Request) -> Plan:
        return await self._fleet.plan(await body(request, PlanRequest))

    async def _apply_profile(self, request: web.Request) -> ApplyResult:
        asked = await body(request, ApplyProfileRequest)
        name = request.match_info["profile"]
        return await self._fleet.inspection.apply_profile(name, dry_run=False, generation=asked.generation)

    async def _apply(self, request: web.Request) -> ApplyResult:
        return await self._fleet.apply(await body(request, ApplyRequest))

    async def _act(self, request: web.Request) -> ActionResult:
        verb = request.path.rsplit("/", 1)[1]
        return await self._fleet.act(verb, await body(request, ReplicasRequest))

    async def _scale(self, request: web.Request) -> ActionResult:
        return await self._fleet.scale(await body(request, ScaleRequest))

    async def _quarantine(self, request: web.Request) -> GpusResult:
        return await self._fleet.quarantine_gpus(await body(request, GpusRequest))

    async def _release(self, request: web.Request) -> GpusResult:
        return await self._fleet.release_gpus(await body(request, GpusRequest))

    async def _reload(self, _request: web.Request) -> ApplyResult:
        return await self._fleet.reload()

    async def _upgrade(self, request: web.Request) -> UpgradeAccepted:
        return await self._fleet.upgrade(await body(request, UpgradeRequest))

    async def _replace_routers(self, _request: web.Request) -> RouterView:
        return await self._fleet.replace_routers()

    async def _shutdown(self, request: web.Request) -> None:
        drain, forget = flag(request, "drain", default=True), flag(request, "forget", default=True)
        await self._fleet.shutdown(drain=drain, forget=forget)

    async def _logs(self, request: web.Request) -> Stream:
        replica = request.match_info["replica"]
        previous = flag(request, "previous", default=False)
        if previous and flag(request, "follow", default=False):
            raise Invalid("a log of the past cannot be followed", "use --previous or -f, not both")
        return _lines(request, lambda: self._fleet.inspection.log_path(replica, previous))

    async def _daemon_logs(self, request: web.Request) -> Stream:
        return _lines(request, self._fleet.inspection.daemon_log)

    def _paths(self, source: str) -> Paths:
        """The files of a replica, or for the empty name of the daemon.

        :raises NotFound: no such replica.
        """
        inspection = self._fleet.inspection
        if not source:
            return inspection.daemon_log
        inspection.all_logs(source)

        def paths() -> list[Path]:
            try:
                return inspection.all_logs(source)
            except NotFound:  # removed while somebody reads on
                return []

        return paths

    async def _page(self, request: web.Request) -> LogPage:
        paths = self._paths(request.query.get("source", ""))()
        text = request.query.get("before")
        before = None if text is None else Cursor.parse(text)
        count = line_count(request, PAGE_LINES_MAX)
        match = request.query.get("match") or None
        return await asyncio.to_thread(page, paths, before, count, match)

    async def _follow(self, request: web.Request) -> Stream:
        names = list(dict.fromkeys(request.query.getall("source", [""])))
        if len(names) > LOG_SOURCES_MAX:
            raise Invalid(f"{len(names)} logs at once", f"follow at most {LOG_SOURCES_MAX}")
        sources: Sources = {name: self._paths(name) for name in names}
        places = dict(
            zip(request.query.getall("source", [""]), request.query.getall("after", []), strict=False)
        )
        after = {name: str(Cursor.parse(place)) for name, place in places.items() if place}
        count = line_count(request, PAGE_LINES_MAX)
        return Stream("application/x-ndjson", lambda: _batches(LogFeed(sources, count, after)))


async def _batches(feed: LogFeed) -> AsyncGenerator[bytes, None]:
    encoder = msgspec.json.Encoder()
    look: asyncio.Future[list[LogBatch]] | None = None
    try:
        while True:
            # A client that does not read holds up its own stream alone, and finds the rest counted as dropped.
            look = asyncio.ensure_future(asyncio.to_thread(feed.look))
            batches = await asyncio.shield(look)
            if batches:
                yield b"".join(encoder.encode(batch) + b"\n" for batch in batches)
            await asyncio.sleep(POLL_S)
    finally:
        if look is not None:  # a thread cannot be called back: one that is still looking has the files open
            await asyncio.wait({look})
        feed.close()


def _lines(request: web.Request, paths: Paths) -> Stream:
    count = line_count(request, LOG_LINES_MAX)
    following = flag(request, "follow", default=False)
    known = paths()  # says that there is no such replica before the first byte
    if not following and not known:
        raise NotFound("nothing has been logged yet", "see gpuserve status")

    async def past() -> AsyncGenerator[bytes, None]:
        for line in await asyncio.to_thread(last_lines, known, count):
            yield line if line.endswith(b"\n") else line + b"\n"

    return Stream("text/plain; charset=utf-8", (lambda: follow(paths, count)) if following else past)
