"""Clients that hold, trickle or crowd: what they cost, and that the others do not notice."""

from __future__ import annotations

import asyncio
import resource
import warnings
from pathlib import Path

import pytest
from tests.router.bench import Bench, true

from gpuserved.core.routes import Kind, Match, Route
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import HEAD_MAX_BYTES
from gpuserved.router.http.request_reader import BODY_MIN_BYTES_PER_S, BODY_STALL_S, RequestReader

CHAT = "/v1/chat/completions"
IDLE_CONNECTIONS = 10_000
_FDS_OF_OURS = 500


class _Open:
    """Lets everything in."""

    def screen(self, head: object) -> Match:
        return Match(Route(Kind.JSON))

    def body_max_bytes(self) -> int:
        return 1 << 26


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.fault(20)
async def test_ten_thousand_idle_connections_cost_little_and_stop_nobody(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(IDLE_CONNECTIONS, hard - _FDS_OF_OURS)
    if count < IDLE_CONNECTIONS:
        warnings.warn(pytest.PytestWarning(f"only {count} connections: {hard} descriptors"), stacklevel=1)
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    assert (await bench.chat()).status == 200
    before = _rss_bytes(bench.running.pid)
    loop = asyncio.get_running_loop()
    idle: list[asyncio.Transport] = []
    try:
        while len(idle) < count:
            made = await asyncio.gather(
                *(
                    loop.create_connection(asyncio.Protocol, "127.0.0.1", bench.port)
                    for _ in range(min(200, count - len(idle)))
                )
            )
            idle += [transport for transport, _ in made]

        async def all_there() -> bool:
            return bool((await bench.stats())["connections"] >= count)

        await bench.until(all_there)
        each = (_rss_bytes(bench.running.pid) - before) / count
        print(f"{count} idle connections: {each:.0f} bytes each")
        assert each < 16 * 1024
        answers = await asyncio.gather(*(bench.chat() for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        assert not any(transport.is_closing() for transport in idle)
    finally:
        for transport in idle:
            transport.abort()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(18)
async def test_a_thousand_trickled_heads_and_bodies_stop_nobody(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    slow = [await bench.client() for _ in range(1000)]
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
    for number, client in enumerate(slow):
        client.writer.write(half if number % 2 else half + b"\r\n{")
    for _ in range(5):
        for number, client in enumerate(slow):
            client.writer.write(b"X: 1\r\n" if number % 2 else b" ")
        asked = await asyncio.gather(*(bench.chat() for _ in range(5)))
        assert {answer.status for answer in asked} == {200}
    assert len(up.seen) == 25
    assert (await bench.stats())["in_flight"] == 0


def _trickle(reader: RequestReader, bytes_per_s: int, seconds: int) -> int | None:
    """The second after which the reader's deadline had passed; None: it never did."""
    for now in range(1, seconds):
        if reader.deadline is not None and reader.deadline < now:
            return now
        reader.feed(b" " * bytes_per_s)
        reader.advance(float(now))
    return None


@pytest.mark.parametrize(
    ("bytes_per_s", "ends"),
    [(0, True), (1, True), (BODY_MIN_BYTES_PER_S // 2, True), (BODY_MIN_BYTES_PER_S, False)],
)
def test_a_trickled_body_ends_and_a_slow_one_does_not(bytes_per_s: int, ends: bool) -> None:
    reader = RequestReader(_Open())
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    assert reader.advance(0.0) is None
    ended = _trickle(reader, bytes_per_s, 300)
    reader.clear()
    assert (ended is not None) == ends
    if ended is not None:
        assert BODY_STALL_S <= ended <= 2 * BODY_STALL_S + 2


def test_a_body_that_came_fast_and_then_stops_ends_too() -> None:
    reader = RequestReader(_Open())
    reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n" + b" " * 5_000_000)
    assert reader.advance(0.0) is None
    assert reader.deadline == BODY_STALL_S
    reader.clear()


def test_endless_header_lines_end_at_the_cap() -> None:
    reader = RequestReader(_Open())
    reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n")
    while reader.buffered_bytes <= HEAD_MAX_BYTES - 6:
        reader.feed(b"X: 1\r\n")
        assert reader.advance(0.0) is None
    reader.feed(b"X: 1\r\n")
    with pytest.raises(HttpError) as caught:
        reader.advance(0.0)
    assert caught.value.status == 431


@pytest.mark.fault(21)
async def test_a_body_of_one_byte_chunks_holds_up_nobody(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    body = b'{"model":"m","pad":"' + b"x" * 300_000 + b'"}'
    wire = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    client = await bench.client()
    client.writer.write(
        b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode() + wire
    )
    tiny = asyncio.create_task(client.answer())
    served = 0
    while not tiny.done():
        assert (await bench.ask("GET", "/v1/models")).status == 200
        served += 1
    assert (await tiny).json["bytes"] == len(body)
    assert served >= 3
    await bench.until(lambda: true(len(up.seen) == 1))


LARGE = {
    "one long string": b'"x":"' + b"a" * (60 << 20) + b'"',
    "escapes": b'"x":"' + b"\\n" * (30 << 20) + b'"',
    "numbers": b'"x":[' + b"0," * (30 << 20) + b"0]",
    "arrays": b'"x":[' + b"[]," * (20 << 20) + b"0]",
}


@pytest.mark.parametrize("kind", LARGE)
async def test_a_body_of_60_mib_is_spooled_and_holds_up_nobody(bench: Bench, kind: str) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up, upstream_model="/models/m"))
    assert (await bench.chat()).status == 200
    before = _rss_bytes(bench.running.pid)
    body = b'{"stream": false, ' + LARGE[kind] + b', "model": "m"}'
    large = asyncio.create_task(bench.ask("POST", CHAT, body))
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    client = await bench.client()
    while not large.done():
        began = loop.time()
        assert (await client.ask("GET", "/v1/models")).status == 200
        waits.append(loop.time() - began)
    answer = await large
    assert (answer.status, answer.json["bytes"]) == (200, len(body) + len("/models/m") - 1)
    assert up.seen[1].body.endswith(b', "model": "/models/m"}')
    print(
        f"{kind}: {len(waits)} others, worst {max(waits) * 1e3:.1f} ms, {(_rss_bytes(bench.running.pid) - before) >> 20} MiB"
    )
    assert len(waits) > 5


@pytest.mark.parametrize(
    "body",
    [b'{"model": "m", "x": "' + b"a" * (2 << 20), b"[" + b" " * (2 << 20) + b"]", b'{"model": 7, "x": "' + b"a" * (2 << 20) + b'"}',
     b'{"x":' + b"[" * (2 << 20) + b"}", b'{"model":"m"' + b',"a":1' * (1 << 19) + b"}"],
)  # fmt: skip
async def test_a_broken_large_body_is_400(bench: Bench, body: bytes) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    assert (await bench.ask("POST", CHAT, body)).status == 400
    assert up.seen == []
