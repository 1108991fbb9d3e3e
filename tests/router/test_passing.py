"""What works when nothing fails: bytes through the router, unchanged and in time."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from pathlib import Path

import pytest
from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, plain, send_chunk, send_json, send_stream_head

CHAT = "/v1/chat/completions"


async def test_plain_request_arrives_clean_and_its_answer_returns(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    body = b'{"model": "m",  "messages": [{"role": "user", "content": "My order is late."}]}'
    headers = {
        "Authorization": "Bearer secret", "X-Request-Id": "abc-1", "Connection": "keep-alive, X-Named", "X-Named": "1",
        "X_Under": "1", "TE": "trailers", "X-Kept": "yes", "X-Forwarded-For": "6.6.6.6", "Content-Type": "application/json",
    }  # fmt: skip
    answer = await bench.ask("POST", CHAT + "?a=b", body, headers)
    assert (answer.status, answer.json["by"]) == (200, "a-0")
    assert answer.headers["x-gpuserve-replica"] == "a-0"
    assert answer.headers["x-request-id"] == "abc-1"
    [seen] = up.seen
    assert (seen.target, seen.body) == (CHAT + "?a=b", body)
    assert seen.get("host") == "localhost"
    assert seen.get("x-kept") == "yes"
    assert seen.get("x-request-id") == "abc-1"
    assert seen.get("x-forwarded-for") == "127.0.0.1"
    for gone in ("authorization", "connection", "x-named", "x_under", "te", "transfer-encoding"):
        assert seen.get(gone) is None


async def test_request_id_is_minted_and_never_shared_by_two_in_flight(bench: Bench) -> None:
    go = asyncio.Event()

    async def wait(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await go.wait()
        return await send_json(writer, {})

    up = await bench.upstream("a-0", wait)
    await bench.start(bench.model(up))
    asked = [
        asyncio.create_task(bench.chat(headers=h))
        for h in ({"X-Request-Id": "same"}, {"X-Request-Id": "same"}, {"X-Request-Id": "bad id"}, {})
    ]
    await bench.until(lambda: true(len(up.seen) == 4))
    go.set()
    answers = await asyncio.gather(*asked)
    ids = [seen.get("x-request-id") for seen in up.seen]
    assert len(set(ids)) == 4
    assert "same" in ids
    assert {a.headers["x-request-id"] for a in answers} == set(ids)


async def test_stream_chunks_arrive_as_they_are_made(bench: Bench) -> None:
    steps: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        while piece := await steps.get():
            await send_chunk(writer, piece)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    up = await bench.upstream("a-0", stream)
    await bench.start(bench.model(up))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True})
    steps.put_nowait(b"data: 0\n\n")
    status, headers = await client.head()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert await client.chunk() == b"data: 0\n\n"
    for i in range(1, 5):
        steps.put_nowait(b"data: %d\n\n" % i)
        assert await client.chunk() == b"data: %d\n\n" % i
    steps.put_nowait(b"data: [DONE]\n\n")
    steps.put_nowait(b"")
    assert await client.chunk() == b"data: [DONE]\n\n"
    assert await client.chunk() == b""
    up.script = plain
    assert (await client.ask("POST", CHAT, {"model": "m"})).status == 200
    assert up.connections == 1


@pytest.mark.fault(21)
async def test_large_bodies_both_ways_and_the_limit(bench: Bench) -> None:
    async def echo(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(seen.body))
        writer.write(seen.body)
        await writer.drain()
        return True

    up = await bench.upstream("a-0", echo)
    await bench.start(bench.model(up), body_max_bytes=10 * 1024 * 1024)
    body = json.dumps({"model": "m", "pad": os.urandom(4 * 1024 * 1024).hex()}).encode()
    assert len(body) > 8 * 1024 * 1024
    assert (await bench.ask("POST", CHAT, body)).body == body
    refused = await bench.ask("POST", CHAT, headers={"Content-Length": str(11 * 1024 * 1024)})
    assert (refused.status, refused.json["error"]["code"]) == (413, "body_too_large")
    client = await bench.client()
    client.writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode())
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    for _ in range(11):
        client.writer.write(piece)
    assert (await client.answer()).status == 413
    assert len(up.seen) == 1


async def test_upstream_model_replaces_the_name(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up, name="served", upstream_model="/models/x"))
    assert (await bench.chat("served")).status == 200
    assert up.seen[0].json["model"] == "/models/x"


async def test_hundred_at_once_are_spread_evenly(bench: Bench) -> None:
    go = asyncio.Event()

    async def wait(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await go.wait()
        return await send_json(writer, {"by": up.name})

    ups = [await bench.upstream(f"a-{i}", wait) for i in range(4)]
    await bench.start(bench.model(*ups))
    asked = [asyncio.create_task(bench.chat()) for _ in range(100)]
    await bench.until(lambda: true(sum(len(up.seen) for up in ups) == 100))
    stats = await bench.stats()
    assert stats["in_flight"] == 100
    assert [r["in_flight"] for r in stats["replicas"]] == [25] * 4
    go.set()
    assert {a.status for a in await asyncio.gather(*asked)} == {200}
    stats = await bench.stats()
    assert stats["in_flight"] == 0
    assert stats["requests_total"] == 100


async def test_slow_client_pauses_the_replica_and_memory_stays_bounded(bench: Bench) -> None:
    sent = 0

    async def flood(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 30))
        piece = b"x" * 65536
        while True:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 60)
            sent += len(piece)

    up = await bench.upstream("a-0", flood)
    await bench.start(bench.model(up))
    before = _rss_bytes(bench.running.pid)
    client = await bench.client()
    client.reader.__dict__["_limit"] = 1024  # the smallest client buffer there is
    await client.send("POST", CHAT, {"model": "m"})
    await client.head()
    last = -1

    async def stalled() -> bool:
        nonlocal last
        same, last = sent == last, sent
        if not same:
            await asyncio.sleep(0.5)
        return same

    await bench.until(stalled)
    assert 0 < sent < 64 * 1024 * 1024
    assert _rss_bytes(bench.running.pid) - before < 32 * 1024 * 1024
    client.writer.transport.abort()
    await bench.until(lambda: true(up.open == 0))


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def test_websocket_is_spliced_both_ways(bench: Bench) -> None:
    async def upgrade(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        assert seen.get("upgrade") == "websocket"
        assert seen.get("connection") == "upgrade"
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: k\r\n\r\nhi"
        )
        while data := await reader.read(100):
            writer.write(data.upper())
        return False

    up = await bench.upstream("a-0", upgrade)
    await bench.start(bench.model(up))
    client = await bench.client()
    wanted = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "k",
        "Sec-WebSocket-Version": "13",
    }
    await client.send("GET", "/v1/realtime?model=m", headers=wanted)
    status, headers = await client.head()
    assert (status, headers["sec-websocket-accept"], headers["connection"]) == (101, "k", "upgrade")
    assert await client.reader.readexactly(2) == b"hi"
    client.writer.write(b"ping")
    assert await client.reader.readexactly(4) == b"PING"
    assert (await bench.replica("a-0"))["in_flight"] == 1
    client.writer.close()
    await bench.until(lambda: true(up.open == 0))
    await bench.until(lambda: _idle(bench))
    assert (await bench.ask("GET", "/v1/realtime?model=m")).status == 426
    assert (await bench.ask("GET", "/v1/realtime?model=x", headers=wanted)).status == 404


async def test_what_a_client_sends_before_its_upgrade_is_answered_reaches_the_replica(bench: Bench) -> None:
    """More than is read ahead of an answer: the rest waits in the socket, and must not wait for ever."""
    go = asyncio.Event()
    early = b"x" * 1_000_000
    got = bytearray()

    async def upgrade(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await go.wait()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while len(got) < len(early) and (data := await reader.read(1 << 16)):
            got.extend(data)
        return False

    up = await bench.upstream("a-0", upgrade)
    await bench.start(bench.model(up))
    client = await bench.client()
    client.writer.write(
        b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        + early
    )
    await bench.until(lambda: true(len(up.seen) == 1))
    for _ in range(20):  # the router has turns enough to read all that it will
        await bench.ask("GET", "/health")
    go.set()
    assert (await client.head())[0] == 101
    await bench.until(lambda: true(len(got) == len(early)))
    assert got == early


async def test_an_upgrade_is_asked_for_on_no_other_route(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    answer = await bench.chat(headers={"Upgrade": "websocket", "Connection": "Upgrade"})
    assert answer.status == 200
    assert (up.seen[0].get("upgrade"), up.seen[0].get("connection")) == (None, None)


async def test_stored_response_goes_back_to_the_replica_that_made_it(bench: Bench) -> None:
    made: dict[str, str] = {}

    async def respond(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if seen.method == "GET" or seen.target.endswith("/cancel"):
            return await send_json(writer, {"by": up.name})
        made[f"resp_{len(made)}"] = up.name
        return await send_json(writer, {"id": f"resp_{len(made) - 1}", "by": up.name})

    ups = [await bench.upstream(f"a-{i}", respond) for i in range(3)]
    await bench.start(bench.model(*ups))
    for _ in range(6):
        answer = await bench.ask("POST", "/v1/responses", {"model": "m", "input": "x", "store": True})
        assert answer.status == 200
    assert len(set(made.values())) == 3
    for identity, name in list(made.items()):
        assert (await bench.ask("GET", f"/v1/responses/{identity}")).json["by"] == name
        assert (await bench.ask("POST", f"/v1/responses/{identity}/cancel")).json["by"] == name
        more = {"model": "m", "previous_response_id": identity}
        assert (await bench.ask("POST", "/v1/responses", more)).json["by"] == name
    unknown = await bench.ask("GET", "/v1/responses/resp_99")
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "response_not_found")


@pytest.mark.fault(19)
async def test_client_that_leaves_ends_the_engine_s_work(bench: Bench) -> None:
    async def forever(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        await send_chunk(writer, b"data: 1\n\n")
        await reader.read()
        return False

    up = await bench.upstream("a-0", forever)
    await bench.start(bench.model(up))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True})
    await client.head()
    client.writer.close()
    # It takes milliseconds; no limit of the router's that would end it is below the guard.
    await bench.until(lambda: true(up.open == 0), 20.0)
    await bench.until(lambda: _idle(bench))
    replica = await bench.replica("a-0")
    assert (replica["failures_total"], replica["rotation"]) == (0, "in")


async def _idle(bench: Bench) -> bool:
    return bool((await bench.replica("a-0"))["in_flight"] == 0)
