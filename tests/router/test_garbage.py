"""A request that has ended leaves nothing for the garbage collector: what is freed at once cannot pile up between two collections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.router.bench import Bench, Client
from tests.router.scripted import Script, Seen, Upstream, plain, reset, send_chunk, send_stream_head

from gpuserved.router.server import Router

ROUNDS = 10
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


async def streams(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:  # fmt: skip
    del up, seen, reader
    await send_stream_head(writer)
    for _ in range(3):
        await send_chunk(writer, EVENT)
    await send_chunk(writer, b"data: [DONE]\n\n")
    await send_chunk(writer, b"")
    return True


async def dies(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:  # fmt: skip
    del up, seen, reader
    await send_stream_head(writer)
    await send_chunk(writer, EVENT)
    reset(writer)
    return False


async def never_ends(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:  # fmt: skip
    del up, seen
    await send_stream_head(writer)
    await send_chunk(writer, EVENT)
    await reader.read()
    return False


async def one_request(client: Client) -> None:
    await client.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []})


async def several(client: Client) -> None:
    for _ in range(3):
        await one_request(client)


async def refused(client: Client) -> None:
    await client.ask("POST", "/v1/chat/completions", {"model": "unknown", "messages": []})
    await client.ask("GET", "/nowhere")


async def broken(client: Client) -> None:
    client.writer.write(b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
    await client.reader.read()


async def leaves(client: Client) -> None:
    await client.send("POST", "/v1/chat/completions", {"model": "m", "messages": []})
    await client.head()
    await client.chunk()
    client.writer.transport.abort()


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Router]:
    """The router in this process, where its garbage can be looked at."""
    bench.sock.setblocking(False)
    router = Router(bench.sock, bench.dir / "routing.json", str(bench.dir / "ctl.sock"))
    stop = asyncio.Event()
    serving = asyncio.ensure_future(router.run(stop))
    await asyncio.sleep(0.05)
    try:
        yield router
    finally:
        stop.set()
        await serving


CASES: dict[str, tuple[Script, Callable[[Client], Awaitable[None]]]] = {
    "plain answers": (plain, several),
    "streams": (streams, several),
    "refusals": (plain, refused),
    "broken requests": (plain, broken),
    "clients that leave": (never_ends, leaves),
    "replicas that die": (dies, one_request),
}


@pytest.mark.parametrize("case", CASES)
async def test_an_ended_request_is_freed_at_once(bench: Bench, case: str) -> None:
    script, visit = CASES[case]
    bench.write_table(bench.model(await bench.upstream("a", script)))
    async with running(bench):

        async def rounds(count: int) -> None:
            for _ in range(count):
                client = await bench.client()
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await visit(client)
                client.writer.transport.abort()
            bench.clients.clear()
            await asyncio.sleep(0.1)

        await rounds(2)  # what is made once
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await rounds(ROUNDS)
            gc.collect()
            left = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("gpuserved.router"))  # fmt: skip
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left
