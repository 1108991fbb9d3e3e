"""Replicas in the test process whose answers are scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """One request a replica got."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((v for n, v in self.headers if n == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[["Upstream", Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request; False: close the connection afterwards."""


async def send_json(writer: asyncio.StreamWriter, value: Any, status: int = 200) -> bool:
    body = json.dumps(value).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    )
    writer.write(body)
    await writer.drain()
    return True


async def send_stream_head(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    await writer.drain()


async def send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def plain(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return await send_json(writer, {"by": up.name, "bytes": len(seen.body)})


class Upstream:
    """A replica whose answers are scripted."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.script: Script = plain
        self.health = 200
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path), backlog=512)

    async def die(self) -> None:
        """As a killed process: nobody listens, every connection ends."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> Seen | None:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        lines = raw.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines[1:] if line)]
        seen = Seen(method, target, headers, b"")
        length = int(seen.get("content-length") or 0)
        if length:
            seen.body = await reader.readexactly(length)
        return seen

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while (seen := await self._request(reader)) is not None:
                if seen.target == "/health":
                    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.health)
                    await writer.drain()
                    continue
                self.seen.append(seen)
                if not await self.script(self, seen, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()
