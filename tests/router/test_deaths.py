"""Deaths: proven by the shim, begun answers, requests that kill."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.router.bench import PATIENCE_S, Bench, true
from tests.router.scripted import Seen, Upstream, send_chunk, send_json, send_stream_head

CHAT = "/v1/chat/completions"


async def kill(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    await up.die()
    return False


async def test_death_before_a_byte_is_replayed_and_counted(bench: Bench) -> None:
    a, b = await bench.upstream("a-0", kill), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    assert [(await bench.chat()).json["by"] for _ in range(3)] == ["b-0"] * 3
    assert len(a.seen) == 1
    stats = await bench.stats()
    assert (stats["replayed_total"], stats["in_flight"]) == (1, 0)
    assert (await bench.replica("a-0"))["rotation"] == "ejected"


@pytest.mark.parametrize(
    ("path", "typed"),
    [(CHAT, False), ("/v1/completions", False), ("/v1/messages", True), ("/v1/responses", True)],
)
async def test_begun_stream_ends_with_an_error_event_and_a_clean_end(
    bench: Bench, path: str, typed: bool
) -> None:
    async def half(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        await send_chunk(writer, b'data: {"n": 1}\n\n')
        await send_chunk(writer, b'data: {"n": 2')
        await send_chunk(writer, b"3")
        await asyncio.sleep(0.1)
        await up.die()
        return False

    a, b = await bench.upstream("a-0", half), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    client = await bench.client()
    answer = await client.ask("POST", path, {"model": "m", "stream": True})
    assert answer.whole
    events = answer.body.split(b"\n\n")
    assert events[0] == b'data: {"n": 1}'
    assert events[-1] == b""
    if typed:
        assert len(events) == 3
        name, data = events[1].split(b"\n")
        assert name == b"event: error"
    else:
        data = events[1]
        assert events[2:] == [b"data: [DONE]", b""]
    error = json.loads(data.removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("replica_died", 502)
    assert (await client.ask("POST", CHAT, {"model": "m"})).json["by"] == "b-0"
    stats = await bench.stats()
    assert (stats["cut_total"], stats["replayed_total"]) == (1, 0)


@pytest.mark.parametrize(
    "framing", [b"transfer-encoding: chunked\r\n\r\n5\r\n{'a':\r\n", b"content-length: 100\r\n\r\n{'a':"]
)
async def test_begun_plain_answer_is_aborted_never_ended_cleanly(bench: Bench, framing: bytes) -> None:
    async def half(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + framing)
        await writer.drain()
        await asyncio.sleep(0.1)
        await up.die()
        return False

    a, b = await bench.upstream("a-0", half), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    client = await bench.client()
    answer = await client.ask("POST", CHAT, {"model": "m"})
    assert answer.status == 200
    assert not answer.whole
    assert await client.gone()
    assert b.seen == []


async def test_a_request_that_kills_three_replicas_is_blocked(bench: Bench) -> None:
    ups = [await bench.upstream(f"a-{i}", kill) for i in range(5)]
    await bench.start(bench.model(*ups))
    answer = await bench.chat()
    assert answer.status == 502
    assert "3 replicas died" in answer.json["error"]["message"]
    assert sum(len(up.seen) for up in ups) == 3


async def test_suspects_run_one_at_a_time_so_that_only_the_culprit_is_blocked(bench: Bench) -> None:
    together = asyncio.Event()
    present: set[str] = set()
    crowd: list[int] = []

    async def serve(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        present.add(seen.json["who"])
        crowd.append(len(present))
        try:
            if up.name in {"a-0", "b-0"}:
                if len(present) == 3:
                    together.set()
                await asyncio.wait_for(together.wait(), PATIENCE_S)
                await up.die()
                return False
            await asyncio.sleep(0.2)
            if seen.json["who"] == "culprit":
                await up.die()
                return False
            return await send_json(writer, {"by": up.name})
        finally:
            present.discard(seen.json["who"])

    ups = [await bench.upstream(f"{letter}-0", serve) for letter in "abcd"]
    await bench.start(bench.model(ups[0]))
    asked = {who: asyncio.create_task(bench.chat(who=who)) for who in ("one", "culprit", "two")}
    await bench.until(lambda: true(ups[0]._server is None))
    together.clear()
    present.clear()
    await bench.tell(bench.model(ups[1]))
    await bench.until(lambda: true(ups[1]._server is None))
    present.clear()
    crowd.clear()
    await bench.tell(bench.model(ups[2], ups[3]))
    statuses = {who: (await task).status for who, task in asked.items()}
    assert statuses == {"one": 200, "two": 200, "culprit": 502}
    assert max(crowd) == 1


async def test_stored_and_very_large_requests_are_never_sent_twice(bench: Bench) -> None:
    a, b, c = [
        await bench.upstream("a-0", kill),
        await bench.upstream("b-0", kill),
        await bench.upstream("c-0"),
    ]
    await bench.start(bench.model(a, b, c))
    stored = await bench.ask("POST", "/v1/responses", {"model": "m", "input": "x", "background": True})
    assert stored.status == 502
    large = await bench.chat(pad="x" * (9 * 1024 * 1024))
    assert large.status == 502
    assert c.seen == []
    assert (await bench.chat()).json["by"] == "c-0"


async def _shim(
    bench: Bench,
    path: Path,
    events: asyncio.Queue[dict[str, object] | None],
    greetings: list[dict[str, object]],
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                request = json.loads(line)
                greetings.append(request)
                answer: dict[str, object] = {"ok": True}
                if request["op"] == "hello":
                    answer |= {"v": 1, "running": True, "exit": None, "generation": 1}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
                if request["op"] == "watch":
                    break
            event = await events.get()
            if event is not None:
                writer.write(json.dumps(event).encode() + b"\n")
                await writer.drain()
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    bench.servers.append(await asyncio.start_unix_server(serve, str(path)))


@pytest.mark.parametrize("event", [{"event": "dying", "exit": {"code": 0, "signal": None, "at": 1.0}}, None])
async def test_shim_s_word_takes_a_replica_out_at_once_and_a_new_generation_brings_it_back(
    bench: Bench, event: dict[str, object] | None
) -> None:
    events: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()
    greetings: list[dict[str, object]] = []
    await _shim(bench, bench.dir / "shim", events, greetings)
    a, b = await bench.upstream("a-0"), await bench.upstream("b-0")
    shims = {"a-0": str(bench.dir / "shim")}
    await bench.start(bench.model(a, b, shims=shims))
    await bench.until(lambda: true(len(greetings) == 2))
    assert greetings == [{"op": "hello", "who": "router"}, {"op": "watch"}]
    reader, writer = await asyncio.open_unix_connection(str(bench.dir / "ctl.sock"))
    writer.write(b'{"op":"watch"}\n')
    assert json.loads(await reader.readline()) == {"ok": True}
    events.put_nowait(event)
    told = json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S))
    assert told == {"event": "replica_failed", "id": "a-0", "generation": 1, "kind": "death"}
    writer.close()
    assert (await bench.replica("a-0"))["rotation"] == "ejected"
    assert [(await bench.chat()).json["by"] for _ in range(3)] == ["b-0"] * 3
    await bench.tell(bench.model(a, b, generation=2))
    assert (await bench.replica("a-0"))["rotation"] == "in"
    assert {(await bench.chat()).json["by"] for _ in range(2)} == {"a-0", "b-0"}
