"""A scripted daemon for the screen: events are put in, connections can be cut."""

from __future__ import annotations

import queue
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from textual.pilot import Pilot

from gpuserved.api.errors import Unavailable
from gpuserved.api.types import (
    FleetEvent,
    GpuOwner,
    GpuView,
    ReplicaView,
    RouterView,
    Status,
    SupervisorView,
)

GIB = 1024**3


class ScriptedDaemon:
    """The `Source` of a screen under test."""

    def __init__(self) -> None:
        self.current: Status | None = None
        self.connections = 0
        self._queue: queue.Queue[FleetEvent | Exception | None] = queue.Queue()
        self._seq = 0

    def status(self) -> Status:
        if self.current is None:
            raise Unavailable("no daemon listens at /x.sock")
        return self.current

    def events(self) -> Iterator[FleetEvent]:
        self.connections += 1
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def snapshot(self, status: Status) -> None:
        self.current = status
        self._put(FleetEvent(seq=self._next(), at=0.0, kind="snapshot", status=status))

    def replica(self, replica: ReplicaView, message: str | None = None) -> None:
        self._put(FleetEvent(seq=self._next(), at=0.0, kind="replica", replica=replica, message=message))

    def cut(self, error: Exception | None = None) -> None:
        self.current = None
        self._put(error)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _put(self, item: FleetEvent | Exception | None) -> None:
        self._queue.put(item)


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon()
    yield scripted
    scripted.cut()


@pytest.fixture
def fleet() -> Status:
    """Two GPUs, one of them partly foreign, and three replicas in different straits."""
    gpus = [
        GpuView(
            index=0, uuid="GPU-a", name="NVIDIA H200", memory_used_bytes=130 * GIB, memory_total_bytes=140 * GIB,
            utilization_pct=78.4, temperature_c=62, power_w=548.2,
            owners=[GpuOwner(replica="llama-0", pid=11), GpuOwner(replica=None, pid=88123)],
        ),
        GpuView(index=1, uuid="GPU-b", name="NVIDIA H200", state="LOST"),
    ]  # fmt: skip
    common: dict[str, Any] = {"profile": "llama", "model": "llama-8b", "engine": "vllm"}
    replicas = [
        ReplicaView(
            id="llama-0", state="READY", rotation="in", pid=11, gpus=[0], in_flight=3, running=3, waiting=0,
            kv_cache_pct=41.7, restarts=1, reason="restarted after: API process killed by SIGKILL",
            started_at=time.time() - 200, **common,
        ),
        ReplicaView(id="llama-1", state="STARTING", phase="loading weights", gpus=[1], **common),
        ReplicaView(id="llama-2", state="FAILED", reason="[/] unrecognized [red]arguments\x1b[31m", **common),
    ]  # fmt: skip
    return Status(
        generation=4,
        version="0.1.0",
        endpoint="http://127.0.0.1:8000",
        supervisor=SupervisorView(pid=1, version="0.1.0", uptime_s=10.0),
        router=RouterView(pids=[2], in_flight=3, queued=None, requests_total=100),
        gpus=gpus,
        replicas=replicas,
    )


@pytest.fixture
def until() -> Callable[[Pilot[int], Callable[[], bool]], Awaitable[None]]:
    """Wait for a condition on the screen, with a deadline."""

    async def wait(pilot: Pilot[int], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the screen never came to show it"
            await pilot.pause(0.02)

    return wait
