"""Events to many readers. A slow reader delays nobody: it loses telemetry first, and is given a new snapshot after that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import final

from msgspec import structs

from gpuserved.api.crash import CrashCard
from gpuserved.api.types import FleetEvent, ReplicaView, Status

QUEUE_MAX = 256
"""Events kept for one reader: some minutes of a calm fleet, and a bounded few hundred KiB for a reader that is stuck."""
RECENT_MAX = 1_000
"""Events that are kept for who attaches later: changes of state and notices, never telemetry. 1.2 MB."""
CARDS_MAX = 32
"""Of them with their crash card: those with the tracebacks of ten processes take 70 KB each, and every one is on disk."""


class Bus:
    """Numbers events and hands them to every subscription. Belongs to one event loop.

    :param snapshot: the whole state now.
    :param generation: the fleet's generation now.
    :param clock: Unix seconds.
    """

    def __init__(
        self,
        snapshot: Callable[[], Status],
        generation: Callable[[], int],
        clock: Callable[[], float],
        *,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._snapshot = snapshot
        self._generation = generation
        self._clock = clock
        self._queue_max = queue_max
        self._seq = 0
        self._readers: set[Subscription] = set()
        self._recent: deque[FleetEvent] = deque(maxlen=RECENT_MAX)
        self.keep: Callable[[FleetEvent], None] = lambda _event: None
        """Called with every event that is worth keeping; must not block."""

    @property
    def readers(self) -> int:
        """How many subscriptions are open; nobody needs telemetry events where it is 0."""
        return len(self._readers)

    def publish(
        self,
        kind: str,
        *,
        status: Status | None = None,
        replica: ReplicaView | None = None,
        previous_state: str | None = None,
        message: str | None = None,
        severity: str = "info",
        crash: CrashCard | None = None,
    ) -> None:
        """Send one event (`replica`, `telemetry` or `notice`) to every reader. Never blocks, never fails."""
        self._seq += 1
        event = FleetEvent(
            seq=self._seq,
            at=self._clock(),
            kind=kind,
            status=status,
            replica=replica,
            previous_state=previous_state,
            message=message,
            severity=severity,
            crash=crash,
            generation=self._generation(),
        )
        if kind == "notice" or (replica is not None and replica.state != previous_state):
            self._recent.append(event)
            if crash is not None:
                self._drop_old_cards()
            self.keep(event)
        for reader in self._readers:
            reader.offer(event)

    def _drop_old_cards(self) -> None:
        with_card = [place for place, event in enumerate(self._recent) if event.crash is not None]
        for place in with_card[:-CARDS_MAX]:
            self._recent[place] = structs.replace(self._recent[place], crash=None)

    def recall(self, events: Iterable[FleetEvent]) -> None:
        """Events of before this bus, oldest first: they come first in `recent()`, and no reader is told."""
        self._recent = deque([*events, *self._recent], maxlen=RECENT_MAX)

    def recent(self) -> list[FleetEvent]:
        """What has been reported of late, oldest first."""
        return list(self._recent)

    def subscribe(self) -> Subscription:
        """A new reader; its first event is a snapshot. Close it, or use it as a context."""
        reader = Subscription(self, self._queue_max)
        self._readers.add(reader)
        return reader

    def snapshot_event(self) -> FleetEvent:
        """A snapshot that stands for every event so far."""
        status = self._snapshot()
        return FleetEvent(
            seq=self._seq, at=self._clock(), kind="snapshot", status=status, generation=status.generation
        )

    def close(self) -> None:
        """End every subscription: each reader gets what is queued for it, then the end."""
        for reader in tuple(self._readers):
            reader.close()

    def forget(self, reader: Subscription) -> None:
        """No more events to this reader."""
        self._readers.discard(reader)


@final
class Subscription(AsyncIterator[FleetEvent]):
    """One reader's bounded queue."""

    def __init__(self, bus: Bus, queue_max: int) -> None:
        self._bus = bus
        self._queue_max = queue_max
        self._queue: deque[FleetEvent] = deque()
        self._resync = True
        self._closed = False
        self._wake = asyncio.Event()
        self._wake.set()

    def offer(self, event: FleetEvent) -> None:
        """Queue one event. Telemetry replaces queued telemetry; where there is no room left, all gives way to a snapshot."""
        if self._resync:
            return  # the snapshot, taken when the reader asks for it, will hold this event's outcome
        if event.kind == "telemetry" and self._queue and self._queue[-1].kind == "telemetry":
            self._queue.pop()
        if len(self._queue) >= self._queue_max:
            if event.kind == "telemetry":
                return
            self._queue = deque(kept for kept in self._queue if kept.kind != "telemetry")
        if len(self._queue) >= self._queue_max:
            self._queue.clear()
            self._resync = True
        else:
            self._queue.append(event)
        self._wake.set()

    async def __anext__(self) -> FleetEvent:
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._closed:
                raise StopAsyncIteration
            if self._resync:
                self._resync = False
                return self._bus.snapshot_event()
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> None:
        """No more events; a reader that waits is told the end."""
        self._closed = True
        self._bus.forget(self)
        self._wake.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
