"""A provider behind a thread and a deadline: a driver that hangs stops no event loop and no exit."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from gpuserved.core.placement import GpuInfo
from gpuserved.telemetry.provider import GpuProvider, GpuSample

DEADLINE_S = 2.0
"""NVML answers in milliseconds; past this a driver is stuck (nvidia-smi hangs the same way)."""

T = TypeVar("T")
_Job = tuple[Callable[[], object], "asyncio.Future[object]", asyncio.AbstractEventLoop]


class Sampler:
    """Asks a provider from an event loop. While one call is stuck, the others answer at once with what is known."""

    def __init__(self, provider: GpuProvider, deadline_s: float = DEADLINE_S) -> None:
        self.provider = provider
        self._deadline_s = deadline_s
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._infos: list[GpuInfo] = []
        self._stuck_since: float | None = None
        self._pending: asyncio.Future[object] | None = None
        self._turn = asyncio.Lock()
        # A daemon thread: a stuck driver must not keep the process from ending.
        threading.Thread(target=_work, args=(self._jobs,), name="gpu-sampler", daemon=True).start()

    @property
    def reason(self) -> str | None:
        """What is wrong with the source; None: all well."""
        if self._stuck_since is not None:
            return f"the GPU driver has not answered for {time.monotonic() - self._stuck_since:.0f} s"
        return self.provider.reason

    async def inventory(self) -> list[GpuInfo]:
        """The GPUs; the last known ones while the driver hangs."""
        found = await self._ask(self.provider.inventory)
        if found is not None:
            self._infos = found
        return list(self._infos)

    async def sample(self) -> list[GpuSample]:
        """The figures; all None while the driver hangs."""
        found = await self._ask(self.provider.sample)
        if found is not None:
            return found
        return [
            GpuSample(info.index, info.uuid, memory_total_bytes=info.memory_total_bytes)
            for info in self._infos
        ]

    def close(self) -> None:
        """End the thread, once it is free."""
        self._jobs.put(None)

    async def _ask(self, call: Callable[[], T]) -> T | None:
        """The answer, or None where it does not come in time. An exception of the provider is the caller's."""
        async with self._turn:
            if self._pending is not None and not self._pending.done():
                # Stuck, or its caller went away: a second call would only queue up behind it.
                patience_s = 0.0 if self._stuck_since is not None else self._deadline_s
                await asyncio.wait({self._pending}, timeout=patience_s)
                if not self._pending.done():
                    return None
            return await self._call(call)

    async def _call(self, call: Callable[[], T]) -> T | None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        future.add_done_callback(_forget)
        began = time.monotonic()
        self._pending = future
        self._jobs.put((call, future, loop))
        done, _ = await asyncio.wait({future}, timeout=self._deadline_s)
        if not done:
            self._stuck_since = began
            return None
        self._stuck_since = None
        return future.result()  # type: ignore[return-value] # the queue carries calls of all types


def _forget(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()  # nobody waits any more; asking keeps the loop from complaining


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        call, future, loop = job
        try:
            answer, error = call(), None
        except Exception as caught:
            answer, error = None, caught
        try:
            loop.call_soon_threadsafe(_settle, future, answer, error)
        except RuntimeError:
            return  # the loop is closed: nobody asks any more


def _settle(future: asyncio.Future[object], answer: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
