"""The state file: nothing that has happened is lost at an end, and nothing waits for a slow disk but what must."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.conftest import World, text

from gpuserved.api.errors import Conflict
from gpuserved.api.types import ApplyRequest, ScaleRequest
from gpuserved.fleet.persistence import FleetRecord, Saver, load
from gpuserved.host import statefile


@dataclass
class SlowDisk:
    """Takes a file only when it is told to. Runs in whatever thread writes."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    let: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    written: list[int] = field(default_factory=list)
    refuses: bool = False

    def save(self, path: Path, data: dict[str, Any], *, version: int) -> None:
        self.begun.release()
        assert self.let.acquire(timeout=60)
        if self.refuses:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(data["generation"])
        self.real(path, data, version=version)

    def real(self, path: Path, data: dict[str, Any], *, version: int) -> None:
        raise AssertionError

    async def busy(self) -> None:
        """Until a write has begun; the loop goes on meanwhile."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=60)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    made = SlowDisk()
    made.real = statefile.save  # type: ignore[method-assign]
    monkeypatch.setattr(statefile, "save", made.save)
    return made


@dataclass
class Saved:
    saver: Saver
    path: Path
    generation: int = 0

    def on_disk(self) -> int:
        return load(self.path)[0].generation


@pytest.fixture
async def saved(tmp_path: Path) -> AsyncIterator[Saved]:
    made: list[Saved] = []
    path = tmp_path / "fleet.json"
    made.append(Saved(Saver(path, lambda: FleetRecord(generation=made[0].generation)), path))
    yield made[0]
    await made[0].saver.close()


async def test_a_change_just_before_the_end_is_kept(saved: Saved) -> None:
    """It is noted to be written in a moment, and the daemon ends before that moment."""
    saved.generation = 7
    saved.saver.soon()
    await saved.saver.close()
    assert saved.on_disk() == 7


async def test_a_daemon_that_ends_right_after_a_change_keeps_it(world: World) -> None:
    """What only `soon` is called for: a change of a replica's state, or here of nothing but the generation."""
    await world.apply(plain=text("plain"))
    generation = world.fleet._state.commit()
    world.fleet._saver.soon()
    await world.fleet.close()
    assert load(world.state_file)[0].generation == generation


async def test_a_slow_disk_stops_nothing_but_what_must_be_on_it(saved: Saved, disk: SlowDisk) -> None:
    """Were the write on the event loop, nobody would come to let the disk go on."""
    saved.generation = 1
    intent = asyncio.create_task(saved.saver.now())
    await disk.busy()
    assert not intent.done(), "the start that it is for has not happened"
    disk.let.release()
    await asyncio.wait_for(intent, 60)
    assert saved.on_disk() == 1


async def test_of_what_waits_for_a_slow_disk_the_newest_is_written_once(saved: Saved, disk: SlowDisk) -> None:
    saved.generation = 1
    first = asyncio.create_task(saved.saver.now())
    await disk.busy()
    others = []
    for generation in (2, 3, 4):
        saved.generation = generation
        others.append(asyncio.create_task(saved.saver.now()))
        await asyncio.sleep(0)
    disk.let.release()
    await asyncio.wait_for(first, 60)
    assert not any(each.done() for each in others), "what they wait for is not on disk"
    disk.let.release()
    await asyncio.wait_for(asyncio.gather(*others), 60)
    assert disk.written == [1, 4]


async def test_a_disk_that_refuses_is_told_to_who_needs_it_and_shown_to_all(
    saved: Saved, disk: SlowDisk
) -> None:
    disk.refuses = True
    disk.let.release(2)
    with pytest.raises(OSError, match="No space left"):
        await asyncio.wait_for(saved.saver.now(), 60)
    await asyncio.wait_for(saved.saver.quietly(), 60)
    assert saved.saver.problem == "state not saved: No space left on device"
    disk.refuses = False
    disk.let.release()
    await asyncio.wait_for(saved.saver.now(), 60)
    assert saved.saver.problem is None


async def test_an_answer_to_a_mutation_waits_for_the_disk_and_nobody_else_does(
    world: World, disk: SlowDisk
) -> None:
    apply = asyncio.create_task(world.apply(plain=text("plain")))
    await disk.busy()
    assert not apply.done()
    assert world.fleet.status().generation == 1
    generation = world.fleet.status().generation
    stale = ApplyRequest(profiles={"other": text("other")}, generation=generation - 1)
    with pytest.raises(Conflict):
        await asyncio.wait_for(world.fleet.apply(stale), 60)
    scale = asyncio.create_task(world.fleet.scale(ScaleRequest(profile="plain", replicas=0)))
    for _ in range(10_000):
        if world.fleet.status().generation > generation:
            break
        await asyncio.sleep(0.001)
    assert world.fleet.status().generation == generation + 1, "the second is decided while the first waits"
    disk.let.release(8)
    await asyncio.wait_for(asyncio.gather(apply, scale), 60)
    assert load(world.state_file)[0].generation == generation + 1


def test_a_state_of_before_is_read_and_what_it_does_not_know_is_no_error(tmp_path: Path) -> None:
    """The file of the first release, as it wrote it."""
    path = tmp_path / "fleet.json"
    replica = {
        "id": "a-0", "profile": "a", "gpu_uuids": ["SIM-0"], "state": "READY", "goal": "serve", "generation": 3,
        "reason": "", "cause": None, "drains_until": None,
        "history": {"crashes_in_a_row": 1, "restarts": 4, "last_cause": None},
    }  # fmt: skip
    wanted = {"name": "a", "text": "x", "source": "a.toml", "scaled": 2, "solved": None}
    data = {
        "generation": 5, "wanted": [wanted], "replicas": [replica], "rolls": [], "let_go": {"a-1": wanted},
        "of_a_later_release": 1,
    }  # fmt: skip
    statefile.save(path, data, version=1)
    found, problem = load(path)
    assert problem is None
    assert (found.generation, found.wanted[0].scaled, found.let_go["a-1"].name) == (5, 2, "a")
    assert found.replicas[0].replica().history.restarts == 4
