"""The calls that read logs: raw lines for commands, pages and batches for screens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
from aiohttp import web

from gpuserved.api.errors import Invalid, NotFound
from gpuserved.api.inspect import LogBatch, LogPage
from gpuserved.api.wire import LOG_LINES_MAX, LOG_SOURCES_MAX, PAGE_LINES_MAX
from gpuserved.control.logfeed import POLL_S, LogFeed, Sources
from gpuserved.control.logpage import Cursor, page
from gpuserved.control.logs import Paths, follow, last_lines
from gpuserved.control.port import FleetPort
from gpuserved.control.routes import Limits, Route, Stream, flag, line_count


class LogHandlers:
    """The log calls, over one fleet."""

    def __init__(self, fleet: FleetPort) -> None:
        self._fleet = fleet

    def routes(self, limits: Limits) -> list[Route]:
        """The table."""
        return [
            Route("GET", "/daemon/logs", self._daemon_logs, limits.read_s),
            Route("GET", "/replicas/{replica}/logs", self._logs, limits.read_s),
            Route("GET", "/logs/page", self._page, limits.change_s),  # it may search gigabytes
            Route("GET", "/logs/follow", self._follow, limits.read_s),
        ]

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
