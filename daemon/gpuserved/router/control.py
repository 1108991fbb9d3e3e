"""The router's control socket: NDJSON, for the supervisor of the same user."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from gpuserved.api.routing import TABLE_VERSION, RouterStats, RoutingTable

LINE_MAX_BYTES = 4 * 1024 * 1024
"""A table of thousands of replicas fits."""
_EVENTS_MAX_BYTES = 1024 * 1024
"""A watcher this far behind is dropped."""

log = logging.getLogger(__name__)


class _Request(msgspec.Struct, frozen=True):
    op: str
    table: msgspec.Raw = msgspec.Raw()
    limit_s: float = -1.0
    keep_idle: bool = False


def _uid_of(writer: asyncio.StreamWriter) -> int | None:
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is None:
        return None
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


class Control:
    """The server."""

    def __init__(
        self,
        path: str,
        *,
        apply: Callable[[RoutingTable], None],
        stats: Callable[[], RouterStats],
        drain: Callable[[float, bool], None],
    ) -> None:
        self._path = path
        self._apply = apply
        self._stats = stats
        self._drain = drain
        self._watchers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen; a socket left by a router before us is removed (the shim runs one at a time)."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_MAX_BYTES)
        finally:
            os.umask(before)

    def close(self) -> None:
        """Stop listening. The path stays: a successor may have bound it already."""
        if self._server is not None:
            self._server.close()
        for writer in self._clients:
            writer.close()

    def push(self, event: dict[str, Any]) -> None:
        """Tell the watchers."""
        line = msgspec.json.encode(event) + b"\n"
        for writer in list(self._watchers):
            transport = writer.transport
            if transport.is_closing() or transport.get_write_buffer_size() > _EVENTS_MAX_BYTES:
                self._watchers.discard(writer)
                transport.abort()
            else:
                writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            if _uid_of(writer) not in {0, os.getuid()}:
                log.warning("a control client of another user was refused")
                return
            while line := await reader.readline():
                writer.write(self._answer(line, writer) + b"\n")
                await writer.drain()
        except (ValueError, OSError) as error:
            log.warning("control client dropped: %s", error)
        finally:
            self._watchers.discard(writer)
            self._clients.discard(writer)
            writer.close()

    def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> bytes:
        try:
            request = msgspec.json.decode(line, type=_Request)
            if request.op == "table" and bytes(request.table):
                table = decode_table(request.table)
                self._apply(table)
                return b'{"ok":true}'
            if request.op == "drain" and request.limit_s >= 0:
                self._drain(request.limit_s, request.keep_idle)
                return b'{"ok":true}'
            if request.op == "stats":
                return msgspec.json.encode({"ok": True, "stats": self._stats()})
            if request.op == "watch":
                self._watchers.add(writer)
                return b'{"ok":true}'
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return msgspec.json.encode({"ok": False, "error": str(error)})
        return msgspec.json.encode({"ok": False, "error": f"unknown op: {request.op[:64]}"})


def decode_table(data: bytes | msgspec.Raw) -> RoutingTable:
    """A table from the wire or the file.

    :raises ValueError: malformed, or of a version this router does not know.
    """
    table = msgspec.json.decode(data, type=RoutingTable)
    if table.version != TABLE_VERSION:
        raise ValueError(f"routing table version {table.version}; this router knows {TABLE_VERSION}")
    return table
