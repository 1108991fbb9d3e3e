from __future__ import annotations

import asyncio

from gpuserved.api.types import RouterView, Status, SupervisorView
from gpuserved.fleet.events import Bus

STATUS = Status(
    generation=1, version="1", endpoint=None, supervisor=SupervisorView(pid=1, version="1", uptime_s=0.0), router=RouterView(),
)  # fmt: skip


def bus(queue_max: int = 4) -> Bus:
    return Bus(lambda: STATUS, lambda: 7, lambda: 1.0, queue_max=queue_max)


async def test_a_snapshot_stands_for_everything_before_it() -> None:
    events = bus()
    events.publish("notice", message="before")
    with events.subscribe() as reader:
        events.publish("notice", message="covered by the snapshot that is still to come")
        first = await reader.__anext__()
        assert (first.kind, first.seq) == ("snapshot", 2)
        events.publish("notice", message="after")
        assert (await reader.__anext__()).message == "after"


async def test_every_event_says_which_fleet_it_is_decided_on() -> None:
    events = bus()
    with events.subscribe() as reader:
        assert (await reader.__anext__()).generation == STATUS.generation
        events.publish("notice", message="x")
        assert (await reader.__anext__()).generation == 7


async def test_only_the_newest_telemetry_waits() -> None:
    events = bus()
    with events.subscribe() as reader:
        await reader.__anext__()
        for _ in range(10):
            events.publish("telemetry", status=STATUS)
        events.publish("notice", message="x")
        assert [(await reader.__anext__()).seq for _ in range(2)] == [10, 11]


async def test_telemetry_gives_way_before_anything_else() -> None:
    events = bus(4)
    with events.subscribe() as reader:
        await reader.__anext__()
        for _ in range(2):
            events.publish("telemetry", status=STATUS)
            events.publish("notice")
        events.publish("notice")
        events.publish("notice")
        kinds = [(await reader.__anext__()).kind for _ in range(4)]
        assert kinds == ["notice"] * 4


async def test_a_reader_that_lost_changes_is_given_a_snapshot() -> None:
    events = bus(4)
    with events.subscribe() as reader, events.subscribe() as fast:
        await reader.__anext__()
        await fast.__anext__()
        for _ in range(6):
            events.publish("notice")
            assert (await fast.__anext__()).kind == "notice"
        resync = await reader.__anext__()
        assert (resync.kind, resync.seq) == ("snapshot", 6)
        events.publish("notice")
        assert (await reader.__anext__()).seq == 7


async def test_closing_wakes_a_reader_that_waits() -> None:
    events = bus()
    reader = events.subscribe()
    await reader.__anext__()

    async def rest() -> list[str]:
        return [event.kind async for event in reader]

    waiting = asyncio.ensure_future(rest())
    await asyncio.sleep(0)
    events.publish("notice")
    events.close()
    assert await asyncio.wait_for(waiting, 60) == ["notice"]
    assert events.readers == 0
