"""The shortest way through the router: chunks that pass as they are, and every case that must not take it."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.router.bench import Bench, true
from tests.router.scripted import Script, Seen, Upstream, send_stream_head

from gpuserved.router.http.framing import OPENINGS, WHOLE_MAX_BYTES, whole_chunks

CHAT = "/v1/chat/completions"


def test_the_opening_of_a_length_is_that_of_the_one_chunk_with_it() -> None:
    for size in range(1, WHOLE_MAX_BYTES):
        chunk = b"%x\r\n%b\r\n" % (size, b"a" * size)
        if len(chunk) < WHOLE_MAX_BYTES:
            assert chunk.startswith(OPENINGS[len(chunk)])
    # 15 bytes of payload make 20, 16 make 22 with their second digit.
    assert OPENINGS[21] == OPENINGS[5] == b"\0"


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"1\r\na\r\n", True),
        (b"1\r\na\r\n3\r\n\r\n\n\r\n", True),
        (b"1\r\na\r\n0\r\n\r\n", False),
        (b"1\r\na\r\n2\r\na\r\n", False),
        (b"1\r\na\r\n1\r\nab\r\n", False),
        (b"1\r\na\r\n+1\r\na\r\n", False),
        (b"1;x\r\na\r\n", False),
        (b"1\r\na\r", False),
        (b"ffffff\r\n\r\n", False),
    ],
)
def test_whole_chunks_are_told_from_anything_else(data: bytes, *, whole: bool) -> None:
    assert whole_chunks(data) is whole


def _wire(events: list[bytes], rng: random.Random) -> bytes:
    """The events in chunks as other servers may write them: several in one, one over several, odd sizes."""
    text, out = b"".join(events), b""
    while text:
        size = rng.choice([1, 7, len(events[0]), len(text), rng.randint(1, len(text))])
        piece, text = text[:size], text[size:]
        form = rng.choice([b"%x", b"%X", b"00%x", b"%x;a=b"]) if rng.random() < 0.3 else b"%x"
        out += (form % len(piece)) + b"\r\n" + piece + b"\r\n"
    return out + b"0\r\n\r\n"


def _cut(wire: bytes, seed: int) -> Script:
    async def stream(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        rng = random.Random(seed)
        await send_stream_head(writer)
        at = 0
        while at < len(wire):
            step = rng.choice([1, 3, 20, 30, 60, len(wire)])
            writer.write(wire[at : at + step])
            await writer.drain()
            at += step
            await asyncio.sleep(0)
        return True

    return stream


@pytest.mark.parametrize("seed", range(12))
async def test_a_stream_arrives_whole_however_it_is_chunked_and_cut(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    events = [b"data: {%b}\n\n" % (b"x" * rng.choice([1, 5, 40, 200, 5000])) for _ in range(30)]
    up = await bench.upstream("a-0", _cut(_wire(events, rng), seed))
    await bench.start(bench.model(up))
    client = await bench.client()
    for _ in range(2):
        answer = await client.ask("POST", CHAT, {"model": "m", "stream": True})
        assert answer.whole
        assert answer.body == b"".join(events)
    assert up.connections == 1


async def test_whole_chunks_pass_as_they_are_and_a_death_after_them_is_told(bench: Bench) -> None:
    async def die(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        for n in range(5):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(b"9\r\ndata:")
        await writer.drain()
        return False

    up = await bench.upstream("a-0", die)
    await bench.start(bench.model(up))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True})
    await client.head()
    assert [await client.chunk() for _ in range(5)] == [b"data: %d\n\n" % n for n in range(5)]
    rest = b""
    while piece := await client.chunk():
        rest += piece
    assert b'"replica_died"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_clients_that_leave_at_once_leave_nothing_behind(bench: Bench) -> None:
    async def slow(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        while True:
            writer.write(b"9\r\ndata: x\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    up = await bench.upstream("a-0", slow)
    await bench.start(bench.model(up))
    for delay_s in (0.0, 0.0, 0.02, 0.1):
        leaving = [await bench.client() for _ in range(25)]
        for client in leaving:
            await client.send("POST", CHAT, {"model": "m", "stream": True})
        await asyncio.sleep(delay_s)
        for client in leaving:
            client.writer.transport.abort()

    async def nothing_left() -> bool:
        stats = await bench.stats()
        in_flight = [stats["in_flight"], *(r["in_flight"] for r in stats["replicas"])]
        return in_flight == [0, 0] and stats["connections"] == 0 and up.open == 0

    await bench.until(nothing_left)
    up.script = _cut(b"9\r\ndata: y\n\n\r\n0\r\n\r\n", 0)
    assert (await bench.chat()).body == b"data: y\n\n"
    assert await true(bench.running.returncode is None)
