"""The router as a real subprocess on an inherited socket, and a plain client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tests.router.scripted import Script, Upstream, plain

from gpuserved.api.routing import ModelRoute, ReplicaRoute, RoutingTable

PATIENCE_S = 60.0
"""For what happens at once on a quiet machine, and later on one that has stalled."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One connection to the router."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if data is not None:
            head += f"Content-Length: {len(data)}\r\nContent-Type: application/json\r\n"
        for name, value in (headers or {}).items():
            head += f"{name}: {value}\r\n"
        self.writer.write(head.encode() + b"\r\n" + (data or b""))
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        lines = raw.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}
        return int(lines[0].split(" ")[1]), headers

    async def chunk(self) -> bytes:
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE_S)
        return data[:-2]

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = b""
        try:
            if "content-length" in headers:
                body = await asyncio.wait_for(
                    self.reader.readexactly(int(headers["content-length"])), PATIENCE_S
                )
            elif headers.get("transfer-encoding") == "chunked":
                while piece := await self.chunk():
                    body += piece
            elif status != 101:
                body = await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(status, headers, body, whole=False)
        return Answer(status, headers, body)

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        await self.send(*args, **kwargs)
        return await self.answer()

    async def gone(self) -> bool:
        """The router has closed this connection."""
        try:
            return await asyncio.wait_for(self.reader.read(65536), PATIENCE_S) == b""
        except ConnectionError:
            return True


@dataclass
class Bench:
    """A router, its replicas, its clients."""

    dir: Path
    sock: socket.socket
    table: RoutingTable = field(default_factory=RoutingTable)
    process: asyncio.subprocess.Process | None = None
    upstreams: list[Upstream] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    """More of the router's command line."""
    clients: list[Client] = field(default_factory=list)
    servers: list[asyncio.AbstractServer] = field(default_factory=list)

    @property
    def running(self) -> asyncio.subprocess.Process:
        assert self.process is not None
        return self.process

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def upstream(self, name: str, script: Script = plain, *, started: bool = True) -> Upstream:
        up = Upstream(name, self.dir / f"{name}.sock")
        up.script = script
        if started:
            await up.start()
        self.upstreams.append(up)
        return up

    def model(self, *ups: Upstream, name: str = "m", generation: int = 1, **more: Any) -> ModelRoute:
        shims = more.pop("shims", {})
        upstream_model = more.pop("upstream_model", None)
        admit = more.pop("admit", True)
        replicas = [
            ReplicaRoute(
                id=up.name, generation=generation, address=up.address, admit=admit, shim=shims.get(up.name),
                upstream_model=upstream_model,
            )
            for up in ups
        ]  # fmt: skip
        return ModelRoute(name=name, profile=name, replicas=replicas, **more)

    def write_table(self, *models: ModelRoute, **more: Any) -> None:
        self.table = RoutingTable(generation=self.table.generation + 1, models=list(models), **more)
        fresh = self.dir / "routing.json.new"
        fresh.write_bytes(msgspec.json.encode(self.table))
        fresh.rename(self.dir / "routing.json")

    async def start(self, *models: ModelRoute, **more: Any) -> None:
        self.write_table(*models, **more)
        await self.start_process()

    async def start_process(self, control: str = "ctl.sock") -> None:
        env = dict(
            os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p), PYTHONDONTWRITEBYTECODE="1"
        )
        with open(self.dir / "router.log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gpuserved.router", "--fd", str(self.sock.fileno()), "--table",
                str(self.dir / "routing.json"), "--control", str(self.dir / control), *self.arguments,
                pass_fds=[self.sock.fileno()], env=env, stdout=log, stderr=log, cwd=self.dir,
            )  # fmt: skip
        await self.until(lambda: self._answers(control))

    async def _answers(self, control: str) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, (self.dir / "router.log").read_text()
        try:
            return bool((await self.control({"op": "stats"}, control))["stats"]["pid"] == self.process.pid)
        except (OSError, ValueError):
            return False

    async def control(self, request: dict[str, Any], control: str = "ctl.sock") -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self.dir / control), limit=1 << 22)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S))
            return answer
        finally:
            writer.close()
            await writer.wait_closed()

    async def tell(self, *models: ModelRoute, **more: Any) -> None:
        self.table = RoutingTable(generation=self.table.generation + 1, models=list(models), **more)
        answer = await self.control({"op": "table", "table": msgspec.to_builtins(self.table)})
        assert answer == {"ok": True}

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self.control({"op": "stats"}))["stats"]
        return stats

    async def replica(self, name: str) -> dict[str, Any]:
        return next(r for r in (await self.stats())["replicas"] if r["id"] == name)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22))
        self.clients.append(client)
        return client

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return await (await self.client()).ask(method, path, body, headers)

    async def chat(self, model: str = "m", headers: dict[str, str] | None = None, **more: Any) -> Answer:
        return await self.ask(
            "POST", "/v1/chat/completions", {"model": model, "messages": [], **more}, headers
        )

    async def raw(self, data: bytes) -> bytes:
        """All a fresh connection answers to these bytes until it ends."""
        client = await self.client()
        client.writer.write(data)
        return await asyncio.wait_for(client.reader.read(), PATIENCE_S)

    async def until(self, true: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
        end = asyncio.get_running_loop().time() + within_s
        while not await true():
            assert asyncio.get_running_loop().time() < end, "not in time"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if (self.dir / "router.log").exists():
            print((self.dir / "router.log").read_text())
        for client in self.clients:
            client.writer.transport.abort()
        for up in self.upstreams:
            await up.die()
        for server in self.servers:
            server.close()
        self.sock.close()
        await asyncio.sleep(0)


async def true(value: bool) -> bool:
    """For `until`: a condition that needs no waiting."""
    return value
