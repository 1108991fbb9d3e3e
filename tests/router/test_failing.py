"""What clients see when replicas fail."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, plain, send_chunk, send_json, send_stream_head

CHAT = "/v1/chat/completions"


async def close_at_once(
    up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    return False


async def test_refused_connection_goes_elsewhere_and_the_replica_returns_through_probation(
    bench: Bench,
) -> None:
    down = await bench.upstream("a-0", started=False)
    up = await bench.upstream("b-0")
    await bench.start(bench.model(down, up))
    answers = [await bench.chat(store=True) for _ in range(4)]
    assert [a.json["by"] for a in answers] == ["b-0"] * 4
    assert (await bench.replica("a-0"))["rotation"] == "ejected"
    await down.start()

    async def back() -> bool:
        return bool((await bench.replica("a-0"))["rotation"] == "probation")

    await bench.until(back)
    assert {(await bench.chat()).json["by"] for _ in range(4)} == {"a-0", "b-0"}
    assert (await bench.replica("a-0"))["rotation"] == "in"


async def test_a_living_replica_that_closes_costs_the_retry_budget_and_comes_back(bench: Bench) -> None:
    a, b = await bench.upstream("a-0", close_at_once), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    assert (await bench.chat()).json["by"] == "b-0"
    a.script = plain

    async def back() -> bool:
        await bench.chat()
        return bool((await bench.replica("a-0"))["rotation"] == "in")

    await bench.until(back)


async def test_a_living_replica_that_is_alone_is_not_ejected_and_the_client_gets_502(bench: Bench) -> None:
    a = await bench.upstream("a-0", close_at_once)
    await bench.start(bench.model(a))
    answer = await bench.chat()
    assert (answer.status, answer.json["error"]["code"]) == (502, "replica_failed")
    assert (await bench.replica("a-0"))["rotation"] == "in"


async def test_500_of_a_dead_engine_is_replayed(bench: Bench) -> None:
    async def dead(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        up.health = 503
        return await send_json(writer, {"error": "EngineDeadError"}, 500)

    a, b = await bench.upstream("a-0", dead), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    assert [(await bench.chat()).json["by"] for _ in range(3)] == ["b-0"] * 3
    assert len(a.seen) == 1
    assert (await bench.replica("a-0"))["rotation"] == "ejected"


async def test_500_of_a_living_engine_is_tried_elsewhere_else_passed_on_as_it_is(bench: Bench) -> None:
    async def broken(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        return await send_json(writer, {"error": {"message": "bad kernel"}}, 500)

    a, b = await bench.upstream("a-0", broken), await bench.upstream("b-0")
    await bench.start(bench.model(a, b), bench.model(a, name="alone"))
    assert (await bench.chat()).json["by"] == "b-0"
    alone = await bench.chat("alone")
    assert (alone.status, alone.json) == (500, {"error": {"message": "bad kernel"}})
    assert (await bench.replica("a-0"))["failures_total"] == 2


async def test_stream_that_begins_with_an_error_of_a_dead_engine_is_replayed(bench: Bench) -> None:
    async def dead(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        up.health = 503
        await send_chunk(writer, b'data: {"error": {"message": "EngineCore died", ')
        await send_chunk(writer, b'"code": 500}}\n\ndata: [DONE]\n\n')
        writer.write(b"0\r\n\r\n")
        return True

    async def good(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        await send_chunk(writer, b'data: {"id": 1}\n\ndata: [DONE]\n\n')
        writer.write(b"0\r\n\r\n")
        return True

    a, b = await bench.upstream("a-0", dead), await bench.upstream("b-0", good)
    await bench.start(bench.model(a, b))
    for _ in range(2):
        answer = await bench.chat(stream=True)
        assert (answer.status, answer.body) == (200, b'data: {"id": 1}\n\ndata: [DONE]\n\n')
    assert len(a.seen) == 1


async def test_stale_keep_alive_connection_is_replaced_without_blame(bench: Bench) -> None:
    closers = []

    async def once(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_json(writer, {"n": len(up.seen)})
        await reader.readuntil(b"\r\n\r\n")
        closers.append(1)
        return False

    up = await bench.upstream("a-0", once)
    await bench.start(bench.model(up))
    assert (await bench.chat()).json == {"n": 1}
    assert (await bench.chat()).json == {"n": 2}
    assert closers == [1]
    replica = await bench.replica("a-0")
    assert (replica["failures_total"], replica["rotation"]) == (0, "in")


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_malformed_answers_become_502_and_their_connection_is_not_used_again(
    bench: Bench, garbage: bytes
) -> None:
    async def answer_garbage(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(garbage)
        await writer.drain()
        await reader.read()
        return False

    up = await bench.upstream("a-0", answer_garbage)
    await bench.start(bench.model(up))
    answer = await bench.chat()
    assert (answer.status, answer.json["error"]["code"]) == (502, "bad_upstream_answer")
    await bench.until(lambda: true(up.open == 0))
    up.script = plain
    assert (await bench.chat()).status == 200


async def test_deadline_of_the_client_ends_the_wait_and_the_engine_s_work(bench: Bench) -> None:
    async def silent(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await reader.read()
        return False

    up = await bench.upstream("a-0", silent)
    await bench.start(bench.model(up))
    client = await bench.client()
    answer = await client.ask("POST", CHAT, {"model": "m"}, {"X-Request-Timeout": "0.4"})
    assert (answer.status, answer.json["error"]["code"]) == (504, "deadline_exceeded")
    await bench.until(lambda: true(up.open == 0))
    assert (await bench.replica("a-0"))["in_flight"] == 0
