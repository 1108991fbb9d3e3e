"""The calls that read logs: raw lines for commands, pages and batches for screens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from aiohttp import web

from gpuserved.api.errors import Invalid, NotFound
from gpuserved.api.inspect import LogBatch
from gpuserved.api.wire import LOG_LINES_MAX, LOG_SOURCES_MAX, PAGE_LINES_MAX
from gpuserved.control.handlers import HEADERS, answer, flag
from gpuserved.control.logfeed import POLL_S, LogFeed, Sources
from gpuserved.control.logpage import Cursor, page
from gpuserved.control.logs import Paths, follow, last_lines
from gpuserved.control.port import FleetPort

_DEFAULT_LINES = 100


class LogHandlers:
    """The log calls, over one fleet."""

    def __init__(self, fleet: FleetPort) -> None:
        self._fleet = fleet

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get(f"{prefix}/daemon/logs", self._daemon_logs),
            web.get(f"{prefix}/replicas/{{replica}}/logs", self._logs),
            web.get(f"{prefix}/logs/page", self._page),
            web.get(f"{prefix}/logs/follow", self._follow),
        ]

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        replica = request.match_info["replica"]
        previous = flag(request, "previous", default=False)
        if previous and flag(request, "follow", default=False):
            raise Invalid("a log of the past cannot be followed", "use --previous or -f, not both")
        return await _send_log(request, lambda: self._fleet.inspection.log_path(replica, previous))

    async def _daemon_logs(self, request: web.Request) -> web.StreamResponse:
        return await _send_log(request, self._fleet.inspection.daemon_log)

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

    async def _page(self, request: web.Request) -> web.Response:
        paths = self._paths(request.query.get("source", ""))()
        text = request.query.get("before")
        before = None if text is None else Cursor.parse(text)
        count = _line_count(request, PAGE_LINES_MAX)
        match = request.query.get("match") or None
        return answer(await asyncio.to_thread(page, paths, before, count, match))

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        names = list(dict.fromkeys(request.query.getall("source", [""])))
        if len(names) > LOG_SOURCES_MAX:
            raise Invalid(f"{len(names)} logs at once", f"follow at most {LOG_SOURCES_MAX}")
        sources: Sources = {name: self._paths(name) for name in names}
        places = dict(
            zip(request.query.getall("source", [""]), request.query.getall("after", []), strict=False)
        )
        after = {name: str(Cursor.parse(place)) for name, place in places.items() if place}
        feed = LogFeed(sources, _line_count(request, PAGE_LINES_MAX), after)
        response = web.StreamResponse(headers=HEADERS)
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        encoder = msgspec.json.Encoder()
        look: asyncio.Future[list[LogBatch]] | None = None
        try:
            while True:
                # A client that does not read holds up its own stream alone, and finds the rest counted as dropped.
                look = asyncio.ensure_future(asyncio.to_thread(feed.look))
                batches = await asyncio.shield(look)
                if batches:
                    await response.write(b"".join(encoder.encode(batch) + b"\n" for batch in batches))
                await asyncio.sleep(POLL_S)
        finally:
            # A thread cannot be called back: one that is still looking has the files open.
            if look is None or look.done():
                feed.close()
            else:
                look.add_done_callback(lambda _: feed.close())


def _line_count(request: web.Request, most: int = LOG_LINES_MAX) -> int:
    text = request.query.get("n", str(_DEFAULT_LINES))
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Invalid(f"n={text[:20]!r}: expected a number of lines from 0 to {most}")
    return int(text)


async def _send_log(request: web.Request, paths: Paths) -> web.StreamResponse:
    count = _line_count(request)
    following = flag(request, "follow", default=False)
    known = paths()  # says that there is no such replica before the first byte
    if not following and not known:
        raise NotFound("nothing has been logged yet", "see gpuserve status")
    response = web.StreamResponse(headers=HEADERS)
    response.content_type = "text/plain"
    response.charset = "utf-8"
    await response.prepare(request)
    if following:
        async for block in follow(paths, count):
            await response.write(block)
    else:
        for line in await asyncio.to_thread(last_lines, known, count):
            await response.write(line if line.endswith(b"\n") else line + b"\n")
    await response.write_eof()
    return response
