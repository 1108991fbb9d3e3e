"""Several routers on one listening socket: an even share of clients, one picture of the load, and a death that costs its own alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.bench import Bench, Client
from tests.router.scripted import Seen, Upstream, send_json

from gpuserved.router.counts import COLUMNS, ROWS_MAX, Counts

CHAT = "/v1/chat/completions"


@dataclass
class Routers:
    """Routers beside each other."""

    bench: Bench
    count: int
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, row: int) -> None:
        bench = self.bench
        bench.arguments = ["--counts", str(bench.dir / "counts"), "--row", str(row)]
        await bench.start_process(f"ctl-{row}.sock")
        self.processes[row : row + 1] = [bench.running]

    async def stats(self, row: int) -> dict[str, Any]:
        answer = await self.bench.control({"op": "stats"}, f"ctl-{row}.sock")
        stats: dict[str, Any] = answer["stats"]
        return stats

    async def each(self, figure: str) -> list[int]:
        return [(await self.stats(row))[figure] for row in range(self.count)]


@asynccontextmanager
async def routers(bench: Bench, count: int) -> AsyncIterator[Routers]:
    made = Routers(bench, count)
    try:
        for row in range(count):
            await made.start(row)
        yield made
    finally:
        for process in made.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def waits(up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    while not up.path.with_suffix(".go").exists():
        await asyncio.sleep(0.01)
    return await send_json(writer, {"by": up.name})


def _go(ups: list[Upstream]) -> None:
    for up in ups:
        up.path.with_suffix(".go").touch()


async def _ask_in_turn(bench: Bench, ups: list[Upstream], count: int) -> list[Client]:
    """Requests one after the other: each choice sees all earlier ones."""
    clients = [await bench.client() for _ in range(count)]
    for n, client in enumerate(clients):
        await client.send("POST", CHAT, {"model": "m"})

        async def arrived(wanted: int = n + 1) -> bool:
            return sum(len(up.seen) for up in ups) == wanted

        await bench.until(arrived)
    return clients


async def _connected(made: Routers, count: int, *, in_turn: bool) -> list[int]:
    """How many of so many new connections each router has taken; they are closed again."""

    async def taken(wanted: int) -> bool:
        return sum(await made.each("connections")) == wanted

    clients = []
    for opened in range(1, count + 1):
        clients.append(await made.bench.client())
        if in_turn or opened == count:
            await made.bench.until(lambda wanted=opened: taken(wanted))  # type: ignore[misc]
    shares = await made.each("connections")
    for client in clients:
        client.writer.transport.abort()
    await made.bench.until(lambda: taken(0))
    return shares


@pytest.mark.parametrize(("count", "in_turn"), [(12, True), (300, False)], ids=["few", "many"])
async def test_connections_are_shared_evenly_few_or_many(bench: Bench, count: int, in_turn: bool) -> None:
    """A router that gets no processor for 10 ms is not waited for, so that a round may be uneven on a busy machine."""
    bench.write_table(bench.model(await bench.upstream("a-0")))
    async with routers(bench, 3) as made:
        rounds: list[list[int]] = []
        while not rounds or max(rounds[-1]) > 1.3 * count / 3:
            assert len(rounds) < 6, rounds
            rounds.append(await _connected(made, count, in_turn=in_turn))


async def test_each_router_counts_what_the_others_have_in_flight(bench: Bench) -> None:
    ups = [await bench.upstream(f"a-{n}", waits) for n in range(3)]
    bench.write_table(bench.model(*ups))
    async with routers(bench, 3) as made:
        clients = await _ask_in_turn(bench, ups, 30)
        assert [len(up.seen) for up in ups] == [10, 10, 10]
        in_flight = await made.each("in_flight")
        assert sum(in_flight) == 30
        assert min(in_flight) > 0
        _go(ups)
        assert [(await client.answer()).status for client in clients] == [200] * 30


async def test_a_killed_router_leaves_no_count_behind_and_the_others_serve_on(bench: Bench) -> None:
    ups = [await bench.upstream(f"a-{n}", waits) for n in range(2)]
    bench.write_table(bench.model(*ups))
    async with routers(bench, 2) as made:
        clients = await _ask_in_turn(bench, ups, 12)
        lost = (await made.each("in_flight"))[0]
        assert 0 < lost < 12
        made.processes[0].kill()
        await made.processes[0].wait()
        await made.start(0)
        _go(ups)

        async def outcome(client: Client) -> int | None:
            try:
                return (await client.answer()).status
            except (ConnectionError, asyncio.IncompleteReadError):
                return None

        outcomes = [await outcome(client) for client in clients]
        assert (outcomes.count(200), outcomes.count(None)) == (12 - lost, lost)
        watching = Counts(bench.dir / "counts", ROWS_MAX - 1)
        columns = memoryview((bench.dir / "counts").read_bytes()).cast("Q")[2 : 2 + COLUMNS]
        cells = [watching.cell(key) for key in columns if key]

        async def nothing_in_flight() -> bool:
            return [cell.others() for cell in cells if cell is not None] == [0, 0]

        await bench.until(nothing_in_flight)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 2**64 - 1), st.sampled_from([1, -1])), max_size=40
    )
)
def test_sums_over_rows_are_what_was_added(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("counts") / "counts"
    rows = [Counts(path, row) for row in range(4)]
    totals: dict[int, list[int]] = {}
    for row, key, more in steps:
        cell = rows[row].cell(key)
        assert cell is not None
        cell.add(more)
        totals.setdefault(key, [0] * 4)[row] += more
    for key, expected in totals.items():
        for row in range(4):
            cell = rows[row].cell(key)
            assert cell is not None
            assert cell.others() == sum(expected) - expected[row]


def test_a_row_that_is_taken_up_again_begins_at_nothing(tmp_path: Path) -> None:
    one, other = Counts(tmp_path / "c", 0), Counts(tmp_path / "c", 1)
    cell, seen = one.cell(7), other.cell(7)
    assert cell is not None
    assert seen is not None
    cell.add(5)
    one.connections(9)
    assert (seen.others(), other.fewest_elsewhere()) == (5, 9)
    again = Counts(tmp_path / "c", 0)
    assert (seen.others(), other.fewest_elsewhere()) == (0, 0)
    again.close()
    assert other.fewest_elsewhere() is None
    with pytest.raises(ValueError, match="rows go from 0"):
        Counts(tmp_path / "c", ROWS_MAX)
