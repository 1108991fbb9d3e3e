"""The open loop against a real server: what is due goes out, and waiting is never hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gpuserved.bench.figures import Outcome, Result
from gpuserved.bench.plan import Lengths, Planned, Shape, plan
from gpuserved.bench.run import Run, Target

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


async def request(reader: asyncio.StreamReader) -> bool:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))
    return True


def stream(*events: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-gpuserve-replica: r-0\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


async def load(path: Path, serve: Serve, planned: list[Planned], **more: int) -> list[Result]:
    serving: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(one, str(path))
    target = Target("router", f"unix:{path}")
    run = Run(
        planned, [target], key=None, timeout_s=more.get("timeout_s", 20), in_flight_max=more.get("in_flight_max", 100),
        show=lambda _: None,
    )  # fmt: skip
    try:
        return await run.run()
    finally:
        server.close()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports say goodbye in the loop's next round


SHAPE = Shape(rate_per_s=100, requests=20, poisson=False, prompt=Lengths(3, 3))


async def test_a_server_that_stalls_does_not_slow_the_load_and_the_wait_is_counted(tmp_path: Path) -> None:
    """All 20 are in flight at once, though none is answered: a closed loop would have sent one and waited."""
    waiting = 0
    everybody = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        while await request(reader):
            waiting += 1
            if waiting == SHAPE.requests:
                everybody.set()
            await everybody.wait()
            writer.write(stream(EVENT, EVENT, b"data: [DONE]\n\n"))

    results = await asyncio.wait_for(load(tmp_path / "s", serve, plan(SHAPE, "m")), 30)
    assert [result.outcome for result in results] == [Outcome.OK] * SHAPE.requests
    assert {result.replica for result in results} == {"r-0"}
    waits = sorted(result.ttft_s or 0.0 for result in results)
    assert waits[-1] >= 0.19, "the first waited until the last was due"
    assert all(result.output_tokens == 2 for result in results)


async def test_a_late_client_counts_its_lateness(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request(reader):
            writer.write(stream(EVENT, b"data: [DONE]\n\n"))

    planned = [
        Planned(-0.5, one.body) for one in plan(SHAPE, "m")
    ]  # due half a second before the client could begin
    for result in await load(tmp_path / "s", serve, planned):
        assert result.late_s >= 0.4
        assert (result.ttft_s or 0.0) >= result.late_s


async def test_more_than_may_be_in_flight_is_not_sent_and_counts(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await asyncio.sleep(1)

    results = await load(tmp_path / "s", serve, plan(SHAPE, "m"), in_flight_max=5)
    outcomes = [result.outcome for result in results]
    assert outcomes.count(Outcome.UNSENT) == 15
    assert outcomes.count(Outcome.LOST) == 5


async def test_a_connection_that_was_being_closed_costs_nothing(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(
            stream(EVENT, b"data: [DONE]\n\n")
        )  # promises keep-alive, and hangs up at the next request
        await request(reader)

    planned = [Planned(n * 0.1, one.body) for n, one in enumerate(plan(SHAPE, "m")[:4])]
    results = await load(tmp_path / "s", serve, planned)
    assert [result.outcome for result in results] == [Outcome.OK] * 4


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab"])
async def test_garbage_is_a_loss(tmp_path: Path, garbage: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(garbage)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    (result,) = await load(tmp_path / "s", serve, plan(SHAPE, "m")[:1])
    assert result.outcome is Outcome.LOST


async def test_nobody_there_is_a_loss_and_not_a_crash(tmp_path: Path) -> None:
    run = Run(
        plan(SHAPE, "m")[:2], [Target("router", f"unix:{tmp_path}/none")], key=None, timeout_s=5, in_flight_max=9,
        show=lambda _: None,
    )  # fmt: skip
    assert [result.outcome for result in await run.run()] == [Outcome.LOST] * 2
