"""Wait for something, for so long at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DAEMON_START_LIMIT_S = 60.0
"""A daemon's, from its first import to the control socket; a second on a quiet host, most of it imports."""


async def within(
    work: Awaitable[T], timeout_s: float | None, unwanted: Callable[[T], object] | None = None
) -> T:
    """The result of `work`, which is cancelled where it takes longer.

    Not `asyncio.wait_for`: before Python 3.12 that one loses a cancellation that comes together with the result (gh-86296), and a
    loop that is cancelled once and waits like this goes on for ever.

    :param timeout_s: None: however long it takes.
    :param unwanted: given a result whose caller was cancelled before it could take it: a connection to close, a lock to release.
    :raises asyncio.TimeoutError: it took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        if unwanted is not None:
            task.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else unwanted(done.result())
            )
        raise
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    # It may have come to its end in the moment of being cancelled.
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
