"""What happens, told and kept: events to many readers, on disk for the next daemon, and each replica's changes of state.

A slow reader delays nobody: it loses telemetry first, and is given a new snapshot after that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import final

import msgspec
from msgspec import structs

from gpuserved.api.crash import CrashCard
from gpuserved.api.inspect import Transition
from gpuserved.api.types import FleetEvent, ReplicaView, Status
from gpuserved.host.journal import Journal, read_lines

QUEUE_MAX = 256
"""Events kept for one reader: some minutes of a calm fleet, and a bounded few hundred KiB for a reader that is stuck."""
RECENT_MAX = 1_000
"""Events that are kept for who attaches later: changes of state and notices, never telemetry. 1.2 MB."""
CARDS_MAX = 32
"""Of them with their crash card: those with the tracebacks of ten processes take 70 KB each, and every one is on disk."""
FILE_NAME = "events.jsonl"
FILE_MAX_BYTES = 1024 * 1024
"""Some 1,800 events of 600 bytes; with the file before it at least as many as the bus holds."""
TRANSITIONS_MAX = 50
"""Kept of one replica: a crash loop of the default budget is some twenty."""
REPLICAS_MAX = 256
"""Replicas whose changes are kept, those that are gone included: the ones that changed last. At most 15 KB each."""


class EventJournal:
    """The events that are kept on disk, over restarts of the daemon."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        self._past = read_events(path)
        self._file = Journal(path, max_bytes=FILE_MAX_BYTES)

    @property
    def past(self) -> Iterable[FleetEvent]:
        """What earlier daemons have left, oldest first."""
        return self._past

    def append(self, event: FleetEvent) -> None:
        """Keep an event. Never blocks. Figures of that moment and crash cards, which have files of their own, are left out: a line
        stays short.
        """
        replica = None if event.replica is None else structs.replace(event.replica, load=None)
        self._file.append(msgspec.json.encode(structs.replace(event, replica=replica, crash=None)))

    def close(self) -> None:
        """Write what waits."""
        self._file.close()


def read_events(path: Path) -> list[FleetEvent]:
    """The newest `RECENT_MAX` events that are kept, oldest first. A line that cannot be read is passed over."""
    decoder = msgspec.json.Decoder(FleetEvent)
    found: deque[FleetEvent] = deque(maxlen=RECENT_MAX)
    for line in read_lines(path):
        try:
            found.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return list(found)


class Transitions:
    """The changes of each replica's state that are known."""

    def __init__(self, past: Iterable[FleetEvent] = ()) -> None:
        """:param past: events of before, oldest first."""
        self._of: dict[str, deque[Transition]] = {}
        for event in past:
            if event.replica is not None and event.previous_state is not None:
                view = event.replica
                change = Transition(
                    at=event.at, generation=view.generation, previous_state=event.previous_state, state=view.state, reason=view.reason
                )  # fmt: skip
                self.add(view.id, change)

    def add(self, replica: str, change: Transition) -> None:
        """Remember one change of a replica."""
        changes = self._of.pop(replica, None) or deque(maxlen=TRANSITIONS_MAX)
        changes.append(change)
        self._of[replica] = changes  # the last in the order of the last change
        if len(self._of) > REPLICAS_MAX:
            del self._of[next(iter(self._of))]

    def of(self, replica: str) -> list[Transition]:
        """The changes of one replica, oldest first."""
        return list(self._of.get(replica, ()))

    def since(self, replica: str, state: str) -> float | None:
        """Unix seconds since when a replica has been in `state`; None: that was not seen to begin."""
        changes = self._of.get(replica)
        return changes[-1].at if changes and changes[-1].state == state else None


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
        journal: EventJournal | None = None,
    ) -> None:
        """:param journal: what is worth keeping is kept there, and what it holds comes first in `recent`; None: nothing is kept."""
        self._snapshot = snapshot
        self._generation = generation
        self._clock = clock
        self._queue_max = queue_max
        self._seq = 0
        self._readers: set[Subscription] = set()
        self._journal = journal
        self._recent: deque[FleetEvent] = deque(
            journal.past if journal is not None else (), maxlen=RECENT_MAX
        )

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
            if self._journal is not None:
                self._journal.append(event)
        for reader in self._readers:
            reader.offer(event)

    def _drop_old_cards(self) -> None:
        with_card = [place for place, event in enumerate(self._recent) if event.crash is not None]
        for place in with_card[:-CARDS_MAX]:
            self._recent[place] = structs.replace(self._recent[place], crash=None)

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
