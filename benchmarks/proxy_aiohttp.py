"""The reverse proxy one writes with aiohttp in an afternoon, for comparison: least in flight, streaming, no checks."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"}
)


class Proxy:
    """One session per replica."""

    def __init__(self, sockets: list[str]) -> None:
        self._sockets = sockets
        self._sessions: list[aiohttp.ClientSession] = []
        self._in_flight = [0] * len(sockets)

    async def start(self, _: web.Application) -> None:
        """Open the sessions."""
        for path in self._sockets:
            connector = aiohttp.UnixConnector(path, limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            self._sessions.append(
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
            )

    async def stop(self, _: web.Application) -> None:
        """Close them."""
        for session in self._sessions:
            await session.close()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on."""
        index = min(range(len(self._sessions)), key=self._in_flight.__getitem__)
        self._in_flight[index] += 1
        try:
            headers = {
                name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
            }
            body = await request.read()
            async with self._sessions[index].request(
                request.method, f"http://replica{request.rel_url}", headers=headers, data=body
            ) as upstream:
                kept = {n: v for n, v in upstream.headers.items() if n.lower() not in _HOP_BY_HOP}
                answer = web.StreamResponse(status=upstream.status, headers=kept)
                if upstream.content_length is not None:
                    answer.content_length = upstream.content_length
                await answer.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await answer.write(chunk)
                await answer.write_eof()
                return answer
        finally:
            self._in_flight[index] -= 1


def main(argv: list[str]) -> None:
    """`proxy_aiohttp.py PORT SOCKET...`."""
    proxy = Proxy(argv[1:])
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.on_startup.append(proxy.start)
    app.on_cleanup.append(proxy.stop)
    app.router.add_route("*", "/{path:.*}", proxy.serve)
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=int(argv[0]), access_log=None, backlog=4096, loop=loop, print=None
    )


if __name__ == "__main__":
    main(sys.argv[1:])
