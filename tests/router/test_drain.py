"""A router that is replaced: nobody's next request is lost, long streams end by themselves, and what outlasts the limit is told."""

from __future__ import annotations

import asyncio
import json
import signal

from tests.router.bench import PATIENCE_S, Bench, Client
from tests.router.scripted import Seen, Upstream, plain, send_chunk, send_stream_head

CHAT = "/v1/chat/completions"


class Slow:
    """A stream whose second chunk waits for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(
        self, up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        del up, seen, reader
        await send_stream_head(writer)
        await send_chunk(writer, b"data: 1\n\n")
        await self.go.wait()
        await send_chunk(writer, b"data: 2\n\n")
        writer.write(b"0\r\n\r\n")
        return True


async def begun_stream(bench: Bench) -> Client:
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True})
    assert (await client.head())[0] == 200
    assert await client.chunk() == b"data: 1\n\n"
    return client


async def begin_drain(bench: Bench, limit_s: float, *, keep_idle: bool = True) -> asyncio.subprocess.Process:
    """Replaced: the terms by the control socket, then the shim's SIGTERM."""
    answer = await bench.control({"op": "drain", "limit_s": limit_s, "keep_idle": keep_idle})
    assert answer == {"ok": True}
    bench.running.send_signal(signal.SIGTERM)
    return bench.running


async def drain(bench: Bench, limit_s: float, *, keep_idle: bool = True) -> asyncio.subprocess.Process:
    """The same, and it has taken notice. For limits that cannot be over by then."""
    old = await begin_drain(bench, limit_s, keep_idle=keep_idle)

    async def draining() -> bool:
        return bool((await bench.stats())["draining"])

    await bench.until(draining)
    return old


async def test_idle_connections_get_one_more_answer_that_says_close(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    idle = await bench.client()
    assert (await idle.ask("POST", CHAT, {"model": "m"})).headers.get("connection") != "close"
    old = await drain(bench, 60)
    last = await idle.ask("POST", CHAT, {"model": "m"})
    assert (last.status, last.headers["connection"]) == (200, "close")
    assert await idle.gone()
    assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0


async def test_an_answer_that_promised_to_keep_the_connection_keeps_it(bench: Bench) -> None:
    """Its head was sent before the end began: the client may send its next request the moment the answer is whole."""
    slow = Slow()
    up = await bench.upstream("a-0", slow)
    await bench.start(bench.model(up))
    client = await begun_stream(bench)
    old = await drain(bench, 60)
    up.script = plain
    slow.go.set()
    assert await client.chunk() == b"data: 2\n\n"
    assert await client.chunk() == b""
    after = await client.ask("POST", CHAT, {"model": "m"})
    assert (after.status, after.headers["connection"]) == (200, "close")
    assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0


async def test_what_outlasts_the_limit_ends_with_an_error_event(bench: Bench) -> None:
    slow = Slow()
    await bench.start(bench.model(await bench.upstream("a-0", slow)))
    client = await begun_stream(bench)
    old = await begin_drain(bench, 0.5)
    error = json.loads((await client.chunk()).split(b"\n\n")[0].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("router_ended", 503)
    assert await client.chunk() == b""
    assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0
    slow.go.set()


async def test_the_terms_can_be_shortened_while_it_lasts(bench: Bench) -> None:
    """`down` does not wait for connections that nobody uses."""
    await bench.start(bench.model(await bench.upstream("a-0")))
    idle = await bench.client()
    assert (await idle.ask("GET", "/v1/models")).status == 200
    old = await drain(bench, 600)
    assert old.returncode is None
    assert await bench.control({"op": "drain", "limit_s": 30}) == {"ok": True}
    assert await idle.gone()
    assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0
