"""The policy `prefix` in running routers: conversations come back, routers tell each other, engines' counters are heard."""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, send_json

from gpuserved.api.routing import CacheMetrics, ModelRoute
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.router.peers import MAP_BYTES, Peers, Ring
from gpuserved.router.prompts import CacheFigures, read_figures

NAMES = CacheMetrics(path="/metrics", hits="c:hits_total", queries="c:queries_total", config="c:info")
CHAT = "/v1/chat/completions"
SYSTEM = "Please look at the order with the number given below, and say what happened to it on its way. " * 80


def turns(name: str, count: int) -> list[dict[str, str]]:
    """A conversation's messages up to its turn `count`: 2,000 tokens that are its own, then short ones."""
    found = [{"role": "system", "content": f"{name} {SYSTEM}"}]
    for n in range(count):
        found += [
            {"role": "user", "content": f"And item {n}?"},
            {"role": "assistant", "content": f"Item {n} is on its way."},
        ]
    return found[:-1]


async def by(bench: Bench, name: str, count: int, port: int | None = None) -> str:
    answer = await bench.ask("POST", CHAT, {"model": "m", "messages": turns(name, count)})
    assert answer.status == 200
    return str(answer.json["by"])


async def test_a_conversation_comes_back_and_a_restart_forgets_it(bench: Bench) -> None:
    ups = [await bench.upstream(f"a-{n}") for n in range(4)]
    await bench.start(bench.model(*ups, policy="prefix"))
    names = [f"c{n}" for n in range(8)]
    homes = {name: await by(bench, name, 1) for name in names}
    assert len(set(homes.values())) == 4
    for count in (2, 3):
        assert {name: await by(bench, name, count) for name in names} == homes
    page = (await bench.ask("GET", "/metrics")).body.decode()
    asked, found = (_total(page, f"prompt{what}_bytes_total") for what in ("", "_cached"))
    # Two turns of three were known, but for their last words.
    assert 0.6 < found / asked < 0.67
    assert (await bench.ask("POST", CHAT, {"model": "m"})).status == 200
    assert (await bench.ask("POST", CHAT, {"model": "m", "messages": 7})).status == 200
    fresh = bench.model(*ups, policy="prefix")
    gone = homes["c0"]
    fresh = replace(fresh, replicas=[replace(r, generation=2) if r.id == gone else r for r in fresh.replicas])
    await bench.tell(fresh)
    kept = [name for name in names if homes[name] != gone]
    assert {name: await by(bench, name, 4) for name in kept} == {name: homes[name] for name in kept}


def _total(page: str, name: str) -> float:
    return sum(
        float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"gpuserve_router_{name}{{")
    )


async def _second(bench: Bench) -> tuple[asyncio.subprocess.Process, str]:
    """Another router on the same socket, as a machine with several has them."""
    control = str(bench.dir / "ctl-1.sock")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    with open(bench.dir / "router.log", "ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gpuserved.router", "--fd", str(bench.sock.fileno()), "--table",
            str(bench.dir / "routing.json"), "--control", control,
            pass_fds=[bench.sock.fileno()], env=env, stdout=log, stderr=log, cwd=bench.dir,
        )  # fmt: skip

    async def both_listen() -> bool:
        return len(list(bench.dir.glob("*.prompts"))) == 2 and (bench.dir / "ctl-1.sock").exists()

    await bench.until(both_listen)
    return process, control


async def _served(control: str) -> int:
    reader, writer = await asyncio.open_unix_connection(control)
    writer.write(b'{"op": "stats"}\n')
    answer: dict[str, Any] = msgspec.json.decode(await reader.readline())
    writer.close()
    return int(answer["stats"]["requests_total"])


async def test_routers_know_what_the_others_sent_and_a_new_one_what_its_predecessor_did(bench: Bench) -> None:
    ups = [await bench.upstream(f"a-{n}") for n in range(4)]
    await bench.start(bench.model(*ups, policy="prefix"))
    second, control = await _second(bench)
    try:
        names = [f"c{n}" for n in range(6)]
        for process in (bench.running, second):
            await bench.until(lambda pid=process.pid: true(_rings(pid) == 2))  # type: ignore[misc]
        homes = {name: await by(bench, name, 1) for name in names}
        # Until each router takes the other's prompts for computed.
        await asyncio.sleep(1.5)
        count = 1
        while min((await bench.stats())["requests_total"], await _served(control)) < 8:
            count += 1
            assert count < 60, "one router takes every connection"
            assert {name: await by(bench, name, count) for name in names} == homes
        old = bench.running
        old.kill()
        second.kill()
        await old.wait()
        await second.wait()
        await bench.start_process()
        # The successor hears what its predecessors told from their rings, and takes for waiting what they sent in the last second.
        await bench.until(lambda: true(_rings(bench.running.pid) == 2))
        await asyncio.sleep(1.5)
        assert {name: await by(bench, name, count + 1) for name in names} == homes
    finally:
        if second.returncode is None:
            second.kill()
            await second.wait()


def _rings(pid: int) -> int:
    """How many routers' prompts this one has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len({line.split()[-1] for line in maps if line.endswith(".prompts")})


async def test_the_engines_counters_are_read_for_models_chosen_by_prompt_alone(bench: Bench) -> None:
    asked: list[str] = []

    async def metrics(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        asked.append(up.name)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nc:hits_to")
        await writer.drain()
        return await send_json(writer, {})

    tied, plain = await bench.upstream("tied-0", metrics), await bench.upstream("plain-0", metrics)

    def route(up: Upstream, policy: str) -> ModelRoute:
        made = bench.model(up, name=up.name, policy=policy)
        return replace(made, replicas=[replace(r, cache_metrics=NAMES) for r in made.replicas])

    await bench.start(route(plain, "least_inflight"), route(tied, "prefix"))

    async def looked() -> bool:
        return bool(asked)

    await bench.until(looked)
    assert set(asked) == {"tied-0"}


PAGE = b"""# TYPE c:hits_total counter
c:hits_total{engine="0"} 40.0
c:hits_total{engine="1"} 2.0
c:queries_total{engine="0"} 100.0
c:info{block_size="16",%s} 1.0
c:info_more{num_gpu_blocks="9"} 1.0
"""


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        (b'kv_cache_size_tokens="4000",num_gpu_blocks="7"', 4000.0),
        (b'kv_cache_size_tokens="None",num_gpu_blocks="7"', 112.0),
        (b'num_gpu_blocks="7",odd="a\\"}b"', 112.0),
        (b'num_gpu_blocks="None"', None),
        (b'num_gpu_blocks="-3"', None),
    ],
)
def test_figures_are_read_as_engines_write_them(labels: bytes, tokens: float | None) -> None:
    assert read_figures(PAGE % labels, NAMES) == CacheFigures(42.0, 100.0, tokens)


def test_a_page_without_them_says_nothing() -> None:
    assert read_figures(b"other 1\n", NAMES) == CacheFigures()


def key(n: int, blocks: int) -> PrefixKey:
    return PrefixKey(
        tuple(b"%08d" % (n * 1000 + i) for i in range(blocks)),
        tuple(range(100, 100 * blocks + 100, 100)),
        100 * blocks + 7,
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=60))
def test_a_reader_hears_everything_once_in_order_unless_it_sleeps_too_long(
    steps: list[tuple[int, bool]],
) -> None:
    size = 4096
    shared = mmap.mmap(-1, 8 + size)
    writer, reader = Ring(shared), Ring(shared)
    told: list[tuple[int, int, PrefixKey, float]] = []
    for n, (blocks, reads) in enumerate(steps):
        writer.write(n, 1, key(n, blocks), float(n))
        told.append((n, 1, key(n, blocks), float(n)))
        if reads:
            heard = [tuple(note) for note in reader.read()]
            assert heard == told[len(told) - len(heard) :]
            if sum(40 + 12 * len(prompt.blocks) for _, _, prompt, _ in told) < size // 2:
                assert heard == told
            told.clear()
    assert list(writer.read()) == []


def test_a_ring_that_was_torn_is_left_behind() -> None:
    shared = mmap.mmap(-1, MAP_BYTES)
    writer, reader = Ring(shared), Ring(shared)
    writer.write(1, 1, key(1, 50), 0.0)
    shared[8:16] = b"\xff" * 8
    assert list(reader.read()) == []
    writer.write(1, 1, key(2, 50), 0.0)
    list(reader.read())
    shared[0:8] = b"\xff" * 8
    assert list(reader.read()) == []


def test_peers_find_each_other_and_let_go(tmp_path: Any) -> None:
    one, other = Peers(str(tmp_path / "a.sock")), Peers(str(tmp_path / "b.sock"))
    one.tell(7, 1, key(1, 3), 2.0)
    one.find()
    other.find()
    one.tell(7, 1, key(1, 3), 2.0)
    assert [tuple(note) for note in other.hear()] == [(7, 1, key(1, 3), 2.0)]
    assert list(one.hear()) == []
    assert (tmp_path / "a.sock.prompts").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a.sock.prompts").unlink()
    other.find()
    one.find()
    other.find()
    one.tell(7, 1, key(2, 3), 3.0)
    assert [note.key for note in other.hear()] == [key(2, 3)]
    one.close()
    other.close()


def test_a_full_disk_leaves_a_router_alone_until_there_is_room(tmp_path: Any) -> None:
    peers = Peers(str(tmp_path / "a.sock"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        peers.find()
        peers.tell(7, 1, key(1, 3), 2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(peers.hear()) == []
    peers.find()
    assert (tmp_path / "a.sock.prompts").stat().st_blocks * 512 >= MAP_BYTES
    peers.close()
