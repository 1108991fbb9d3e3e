"""Clients that behave badly: streams that are left, reset, or never finished asking, beside those that read to the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

SILENCE_S = 60.0
"""Longer without a byte than this, and the request counts as lost."""
_KINDS = {"stream": 62, "leave": 14, "reset": 8, "plain": 10, "half": 3, "silent": 3}
"""What a client does next, by weight."""


class Broken(Exception):
    """An answer that no promise allows: cut without a word, or not HTTP."""


@dataclass
class Outcomes:
    """How requests ended."""

    count: Counter[str] = field(default_factory=Counter)
    """whole, told (an error event and a clean end), left (by the client, on purpose), refused, lost."""
    complaints: list[str] = field(default_factory=list)
    """The first few refused or lost, in words."""
    broken: list[tuple[float, str]] = field(default_factory=list)
    """When each lost one broke (monotonic), and how."""
    begun: float = field(default_factory=time.monotonic)

    def add(self, outcome: str, why: str = "") -> None:
        """One more."""
        self.count[outcome] += 1
        if outcome == "lost":
            self.broken.append((time.monotonic(), why))
        if why and len(self.complaints) < 20:
            self.complaints.append(f"{time.monotonic() - self.begun:.0f} s: {outcome}: {why}")


class Client:
    """One place in the crowd: asks, reads or leaves, and asks again."""

    def __init__(self, port: int, model: str, tokens: tuple[int, int], seed: int, outcomes: Outcomes) -> None:
        self._port = port
        self._model = model
        self._tokens = tokens
        self._random = random.Random(seed)
        self._outcomes = outcomes
        self._id = ""
        self._at = ""
        """Where the present request is."""
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; the request then under way is read to its end."""
        await asyncio.sleep(self._random.random() * 2)  # the first requests do not come in one burst
        while not stop.is_set():
            kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
            try:
                await asyncio.wait_for(self._one(kind), SILENCE_S * 4)
            except Broken as broken:
                self._outcomes.add("lost", f"{kind}: {broken}; {self._at}")
                self._hang_up()
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
                self._outcomes.add("lost", f"{kind}: {type(error).__name__} {error}; {self._at}")
                self._hang_up()
                await asyncio.sleep(0.2)
        self._hang_up()

    async def _one(self, kind: str) -> None:
        if self._link is None or self._random.random() < 0.3:
            self._hang_up()
            self._link = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._link
        if kind == "silent":
            await asyncio.sleep(self._random.random())
            self._outcomes.add("left")
            self._hang_up()
            return
        request = self._request(stream=kind != "plain")
        if kind == "half":
            writer.write(request[: self._random.randrange(1, len(request))])
            await asyncio.sleep(self._random.random())
            self._outcomes.add("left")
            self._hang_up()
            return
        writer.write(request)
        self._at = f"no head came, request {self._id}"
        status, headers = await self._head(reader)
        self._at = f"{status} by {headers.get('x-gpuserve-replica')}, request {self._id}"
        if status != 200:
            self._outcomes.add("refused", f"{status} {(await self._body(reader, headers))[:200]!r}")
        elif kind == "plain":
            json.loads(await self._body(reader, headers))
            self._outcomes.add("whole")
        else:
            await self._stream(reader, kind)
        if headers.get("connection") == "close":
            self._hang_up()

    def _request(self, *, stream: bool) -> bytes:
        words = " ".join(self._random.choices(("order", "late", "parcel", "refund", "when"), k=20))
        body = json.dumps(
            {
                "model": self._model, "stream": stream, "max_tokens": self._random.randint(*self._tokens),
                "messages": [{"role": "user", "content": words}], "ignore_eos": True,
            }
        ).encode()  # fmt: skip
        self._id = f"soak-{self._random.getrandbits(64):016x}"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: {self._id}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SILENCE_S)
        first, *lines = raw.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        return int(first.split(" ")[1]), headers

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), SILENCE_S)
        whole = b""
        while piece := await self._chunk(reader):
            whole += piece
        return whole

    async def _chunk(self, reader: asyncio.StreamReader) -> bytes:
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), SILENCE_S)
        return (await reader.readexactly(int(line, 16) + 2))[:-2]

    async def _stream(self, reader: asyncio.StreamReader, kind: str) -> None:
        leave_after = self._random.randint(1, self._tokens[0]) if kind in {"leave", "reset"} else None
        events, data = 0, b""
        while piece := await self._chunk(reader):
            data = (data + piece)[-4096:]
            events += 1
            if events == leave_after:
                self._outcomes.add("left")
                self._hang_up(reset=kind == "reset")
                return
        if not data.endswith(b"data: [DONE]\n\n"):
            raise Broken(f"a stream without its end mark: {data[-100:]!r}")
        self._outcomes.add("told" if b'data: {"error"' in data else "whole")

    def _hang_up(self, *, reset: bool = False) -> None:
        if self._link is None:
            return
        _, writer = self._link
        self._link = None
        with contextlib.suppress(OSError, RuntimeError):
            if reset:
                writer.transport.abort()
            else:
                writer.close()
