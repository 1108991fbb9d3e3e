from __future__ import annotations

import asyncio

import pytest

from gpuserved.host.deadline import within


async def test_a_result_and_a_failure_come_through() -> None:
    async def fails() -> int:
        raise ValueError("as it was")

    assert await within(asyncio.sleep(0, 7), 60) == 7
    assert await within(asyncio.sleep(0, 7), None) == 7
    with pytest.raises(ValueError, match="as it was"):
        await within(fails(), 60)


async def test_what_takes_longer_is_cancelled() -> None:
    ended = asyncio.Event()

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(asyncio.TimeoutError):
        await within(for_ever(), 0.01)
    assert ended.is_set()


async def test_a_cancellation_together_with_the_result_is_not_lost() -> None:
    """`asyncio.wait_for` returns the result there, before Python 3.12; a daemon that was told to end went on for ever."""
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(answer, 60))
    await asyncio.sleep(0)
    answer.set_result(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_cancellation_cancels_the_work() -> None:
    work = asyncio.ensure_future(asyncio.Event().wait())
    waiting = asyncio.ensure_future(within(work, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait({work})
    assert work.cancelled()


async def test_what_ends_while_it_is_cancelled_counts() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done after all"
        return ""

    assert await within(stubborn(), 0.01) == "done after all"


async def test_a_result_that_nobody_takes_is_disposed_of() -> None:
    lock = asyncio.Lock()
    waiting = asyncio.ensure_future(within(lock.acquire(), 60, lambda _: lock.release()))
    while not lock.locked():
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert not lock.locked()
