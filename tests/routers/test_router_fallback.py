"""A supervisor that died in the middle of a replacement left new routers: those that do not come up give way to those before them."""

from __future__ import annotations

import asyncio
import http.client
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.releases import Release

from gpuserved.api.roots import Roots, from_environment, make_private
from gpuserved.api.routing import RoutingTable
from gpuserved.host import listen
from gpuserved.host.deadline import within
from gpuserved.routers import launch, routers
from gpuserved.routers.link import RouterLink
from gpuserved.routers.place import RouterPlace
from gpuserved.routers.routers import Routers

pytestmark = pytest.mark.timeout(180)
LIMIT_S = 60.0
TABLE = RoutingTable(generation=1)
FAULTY = {"router/main.py": ("    wanted = _arguments(", "    sys.exit(9)\n    wanted = _arguments(")}


@pytest.fixture
async def roots(tmp_path: Path) -> AsyncIterator[Roots]:
    made = from_environment({"GPUSERVE_ROOT": str(tmp_path / "root"), "HOME": str(tmp_path)}, uid=os.getuid())
    for folder in (made.run, made.state, made.log, made.cache):
        make_private(folder)
    yield made
    left = Routers(made)  # of a test that failed in the middle
    if await left.adopt():
        await left.stop()


@asynccontextmanager
async def supervised(roots: Roots, *, begins: bool = False) -> AsyncIterator[Routers]:
    """One supervisor's hold on the routers, until it dies. The first begins them."""
    held = Routers(roots)
    assert await held.adopt() is not begins
    held.push(TABLE)
    if begins:
        await held.start(listen.bind("127.0.0.1:0"))
    held.begin()
    try:
        yield held
    finally:
        await held.detach()


async def until(probe: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not probe():
            await asyncio.sleep(0.05)

    await within(wait(), LIMIT_S)


async def only(held: Routers, generation: int) -> int:
    """Wait until there is this generation and nothing else; the PID of its router."""
    await until(lambda: [each.generation for each in held.snapshot.processes] == [generation])
    await until(lambda: held.stats is not None and held.stats.table_generation == TABLE.generation)
    return held.snapshot.pids[0]


async def begin_next(roots: Roots, held: Routers) -> RouterLink:
    """What a replacement does before its supervisor dies: the next generation has a shim, and its router starts."""
    assert held.listener is not None
    link = RouterLink(roots, RouterPlace(roots.run, 0, 2), lambda _link: None)
    await link.start(held.listener.dup())
    await link.detach()
    return link


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models")
    found = connection.getresponse().status
    connection.close()
    return found == 200


async def test_new_routers_that_do_not_come_up_give_way(
    roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = Release(tmp_path, "9.9.9", FAULTY)
    async with supervised(roots, begins=True) as first:
        assert first.listener is not None
        port = first.listener.getsockname()[1]
        before = await only(first, 1)
        with monkeypatch.context() as patched:
            patched.setattr(launch, "_environment", lambda: {"PYTHONPATH": str(faulty.path)})
            broken = await begin_next(roots, first)
    with monkeypatch.context() as patched:
        patched.setattr(routers, "SERVES_WITHIN_S", 2.0)  # for those that never will
        async with supervised(roots) as second:
            assert second.snapshot.processes[0].generation == 2, (
                "the newest is the present one until it fails"
            )
            assert await only(second, 1) == before
            assert await asyncio.to_thread(answers, port)
            await until(lambda: not broken.place.folder.exists())
            assert not (roots.run / "router" / "ctl.sock").is_symlink()
    async with supervised(roots) as third:
        assert await only(third, 1) == before, "and it stays so"
        await third.replace()
        assert await only(third, 2) != before, "what is left is not in the way of a later replacement"
        assert await asyncio.to_thread(answers, port)
        await third.stop()


async def test_new_routers_that_do_come_up_are_kept(roots: Roots) -> None:
    """The same moment, and the new one is sound: the replacement is brought to its end."""
    async with supervised(roots, begins=True) as first:
        assert first.listener is not None
        port = first.listener.getsockname()[1]
        before = await only(first, 1)
        await begin_next(roots, first)
    async with supervised(roots) as second:
        assert await only(second, 2) != before
        assert await asyncio.to_thread(answers, port)
        await second.stop()
