"""Background tasks: none is lost, none fails in silence, none outlives its owner."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gpuserved.host.tasks import Tasks

LOG = logging.getLogger("tests.tasks")


async def test_a_failure_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    tasks, reached = Tasks(LOG), asyncio.Event()

    async def fails() -> None:
        raise ValueError("no disk")

    async def goes_on() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    other = tasks.start(goes_on(), "the other")
    await asyncio.wait([tasks.start(fails(), "sampling")])
    await asyncio.wait_for(reached.wait(), 60)
    await tasks.close()
    assert other.cancelled()
    assert [record.message for record in caplog.records] == ["sampling failed"]
    assert "no disk" in caplog.text


async def test_closing_waits_for_what_a_task_does_at_its_end_and_for_no_task_that_closes_its_own_owner() -> (
    None
):
    tasks, steps = Tasks(LOG), []
    begun = asyncio.Event()

    async def tidies() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            steps.append("tidied")

    async def closes() -> None:
        await tasks.close()
        steps.append("closed")

    tasks.start(tidies(), "tidies")
    await asyncio.wait_for(begun.wait(), 60)
    await asyncio.wait_for(tasks.start(closes(), "closes"), 60)
    assert steps == ["tidied", "closed"]
