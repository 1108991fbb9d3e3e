"""Queues, tables, and the router's own life."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
from tests.router.bench import PATIENCE_S, Bench, true
from tests.router.scripted import Seen, Upstream, plain, send_chunk, send_json, send_stream_head

CHAT = "/v1/chat/completions"


async def _queued(bench: Bench, count: int) -> None:
    async def there() -> bool:
        return bool((await bench.stats())["queued"] == count)

    await bench.until(there)


async def test_requests_wait_for_a_replica_and_are_served_in_order(bench: Bench) -> None:
    order: list[int] = []

    async def note(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        order.append(seen.json["n"])
        return await send_json(writer, {})

    up = await bench.upstream("a-0", note)
    await bench.start(bench.model())
    asked = []
    for n in range(5):
        asked.append(asyncio.create_task(bench.chat(n=n)))
        await _queued(bench, n + 1)
    assert (await bench.ask("GET", "/health")).status == 503
    assert (await bench.stats())["queued_by_model"] == {"m": 5}
    await bench.tell(bench.model(up))
    assert [a.status for a in await asyncio.gather(*asked)] == [200] * 5
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert (await bench.stats())["queued"] == 0


async def test_full_queue_is_429_and_a_passed_deadline_503(bench: Bench) -> None:
    await bench.start(
        bench.model(queue=2, queue_timeout_s=600.0), bench.model(name="quick", queue_timeout_s=0.2)
    )
    late = await bench.chat(headers={"X-Request-Timeout": "0.3"})
    assert (late.status, late.json["error"]["code"]) == (503, "no_replica_ready")
    waiting = [asyncio.create_task(bench.chat()) for _ in range(2)]
    await _queued(bench, 2)
    full = await bench.chat()
    assert (full.status, full.json["error"]["code"], full.headers["retry-after"]) == (429, "queue_full", "1")
    late = await bench.chat("quick")
    assert (late.status, late.json["error"]["code"]) == (503, "no_replica_ready")
    assert int(late.headers["retry-after"]) > 0
    stats = await bench.stats()
    assert (stats["rejected_total"], stats["queued"]) == (3, 2)
    await bench.tell()
    assert [a.status for a in await asyncio.gather(*waiting)] == [503, 503]
    assert (await bench.stats())["queued"] == 0


async def test_who_waits_for_a_model_that_is_removed_is_told_at_once(bench: Bench) -> None:
    await bench.start(bench.model(), bench.model(name="other"))
    asked = [asyncio.create_task(bench.chat()) for _ in range(3)]
    other = asyncio.create_task(bench.chat("other"))
    await _queued(bench, 4)
    await bench.tell(bench.model(name="other"))
    answers = await asyncio.gather(*asked)
    assert [(a.status, a.json["error"]["code"]) for a in answers] == [(503, "model_removed")] * 3
    assert not other.done(), "whose model is still served goes on waiting"
    await bench.tell()
    assert (await other).status == 503


async def test_client_that_leaves_the_queue_frees_its_place(bench: Bench) -> None:
    await bench.start(bench.model(queue=1))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m"})
    await _queued(bench, 1)
    client.writer.close()
    await _queued(bench, 0)


async def test_last_replica_dies_and_the_request_waits_for_its_next_generation(bench: Bench) -> None:
    async def kill(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await up.die()
        return False

    up = await bench.upstream("a-0", kill)
    await bench.start(bench.model(up))
    asked = asyncio.create_task(bench.chat())
    await _queued(bench, 1)
    up.script = plain
    await up.start()
    await bench.tell(bench.model(up, generation=2))
    assert (await asked).status == 200


async def test_tables_change_by_file_and_by_socket_while_a_stream_runs(bench: Bench) -> None:
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

    a, b = await bench.upstream("a-0", stream), await bench.upstream("b-0")
    await bench.start(bench.model(a))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True})
    steps.put_nowait(b"data: 1\n\n")
    await client.head()
    assert await client.chunk() == b"data: 1\n\n"

    bench.write_table(bench.model(a, admit=False), bench.model(b, name="n"))

    async def drained() -> bool:
        return bool((await bench.replica("a-0"))["rotation"] == "out")

    await bench.until(drained)
    assert (await bench.replica("a-0"))["in_flight"] == 1
    assert (await bench.chat("n")).json["by"] == "b-0"

    await bench.tell(bench.model(b))
    assert [r["id"] for r in (await bench.stats())["replicas"]] == ["b-0"]
    assert (await bench.chat("n")).status == 404
    assert (await bench.chat("m")).json["by"] == "b-0"
    for n in range(2, 5):
        steps.put_nowait(b"data: %d\n\n" % n)
        assert await client.chunk() == b"data: %d\n\n" % n
    steps.put_nowait(b"")
    assert await client.chunk() == b""
    assert (await bench.stats())["cut_total"] == 0


async def test_broken_tables_and_garbage_on_the_control_socket_change_nothing(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    for bad in (
        {"op": "table", "table": {"models": 3}},
        {"op": "table", "table": {"version": 99, "models": []}},
        {"op": "table"},
        {"op": "nonsense"},
        {"nothing": 1},
    ):
        answer = await bench.control(bad)
        assert answer["ok"] is False
        assert answer["error"]
    reader, writer = await asyncio.open_unix_connection(str(bench.dir / "ctl.sock"))
    writer.write(b"\x00\xff garbage\n" + b"x" * (5 << 20))
    try:
        await asyncio.wait_for(writer.drain(), PATIENCE_S)
        assert json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S))["ok"] is False
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    except ConnectionError:
        pass
    writer.close()
    (bench.dir / "routing.json").write_text("{half")
    await bench.until(lambda: true("routing.json not read" in (bench.dir / "router.log").read_text()))
    assert (await bench.chat()).status == 200
    assert (await bench.stats())["table_generation"] == 1


async def test_sigterm_finishes_what_runs_and_a_successor_serves_the_same_socket(bench: Bench) -> None:
    go = asyncio.Event()

    async def slow(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        await send_chunk(writer, b"data: 1\n\n")
        await go.wait()
        await send_chunk(writer, b"data: 2\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    up = await bench.upstream("a-0", slow)
    await bench.start(bench.model(up))
    idle, busy = await bench.client(), await bench.client()
    assert (await idle.ask("GET", "/v1/models")).status == 200
    await busy.send("POST", CHAT, {"model": "m", "stream": True})
    await busy.head()
    assert await busy.chunk() == b"data: 1\n\n"
    old = bench.running
    old.send_signal(signal.SIGTERM)
    assert await idle.gone()
    (bench.dir / "ctl.sock").unlink()
    await bench.start_process()
    up.script = plain
    assert (await bench.chat()).status == 200
    assert old.returncode is None
    go.set()
    assert await busy.chunk() == b"data: 2\n\n"
    assert await busy.chunk() == b""
    assert await asyncio.wait_for(old.wait(), PATIENCE_S) == 0
    assert (await bench.chat()).status == 200


@pytest.mark.fault(20)
async def test_connections_over_the_cap_get_503_and_the_others_go_on(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up), max_connections=3)
    kept = [await bench.client() for _ in range(3)]
    for client in kept:
        assert (await client.ask("GET", "/health")).status == 200
    over = await bench.client()
    status, headers = await over.head()
    assert (status, headers["retry-after"]) == (503, "1")
    for client in kept:
        assert (await client.ask("POST", CHAT, {"model": "m"})).status == 200


@pytest.mark.fault(18)
async def test_a_trickled_head_ends_at_the_absolute_deadline(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    loop = asyncio.get_running_loop()
    started = loop.time()
    client = await bench.client()
    client.writer.write(b"GET /v1/models HTTP/1.1\r\n")
    answering = asyncio.create_task(client.head())
    while not answering.done():
        client.writer.write(b"X: 1\r\n")
        await asyncio.wait({answering}, timeout=0.5)
        assert loop.time() - started < 45
    assert (await answering)[0] == 408
    assert loop.time() - started > 9.0
