"""What has happened, over restarts of the daemon: recent events, and the changes of each replica's state."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import msgspec

from gpuserved.api.inspect import Transition
from gpuserved.api.types import FleetEvent
from gpuserved.fleet.bus import RECENT_MAX, Bus
from gpuserved.host.journal import Journal, read_lines
from gpuserved.replica.controller import ReplicaController

FILE_NAME = "events.jsonl"
FILE_MAX_BYTES = 1024 * 1024
"""Some 1,800 events of 600 bytes; with the file before it at least as many as the bus holds."""
TRANSITIONS_MAX = 50
"""Kept of one replica: a crash loop of the default budget is some twenty."""
REPLICAS_MAX = 256
"""Replicas whose changes are kept, those that are gone included: the ones that changed last. At most 15 KB each."""


class History:
    """Remembers for one fleet. Until `begin` nothing is read or written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._of: dict[str, deque[Transition]] = {}
        self._journal: Journal | None = None

    def begin(self, folder: Path) -> None:
        """Go on from what earlier daemons have left in `folder`, and keep what happens from now on."""
        path = folder / FILE_NAME
        past = read_events(path)
        for event in past:
            if event.replica is not None and event.previous_state is not None:
                self._add(event.replica.id, transition(event, event.previous_state))
        self._bus.recall(past)
        self._journal = Journal(path, max_bytes=FILE_MAX_BYTES)
        self._bus.keep = self._keep

    def close(self) -> None:
        """Write what waits."""
        if self._journal is not None:
            self._journal.close()

    def note(self, owner: ReplicaController, previous_state: str) -> None:
        """Remember one change of a replica; what changes nothing of its state is none."""
        r = owner.r
        if r.state.value != previous_state:
            change = Transition(
                at=time.time(),
                generation=r.generation,
                previous_state=previous_state,
                state=r.state.value,
                reason=r.reason or None,
            )
            self._add(owner.id, change)

    def of(self, replica: str) -> list[Transition]:
        """The changes of one replica, oldest first."""
        return list(self._of.get(replica, ()))

    def since(self, replica: str, state: str) -> float | None:
        """Unix seconds since when a replica has been in `state`; None: that was not seen to begin."""
        changes = self._of.get(replica)
        return changes[-1].at if changes and changes[-1].state == state else None

    def _add(self, replica: str, change: Transition) -> None:
        changes = self._of.pop(replica, None) or deque(maxlen=TRANSITIONS_MAX)
        changes.append(change)
        self._of[replica] = changes  # the last in the order of the last change
        if len(self._of) > REPLICAS_MAX:
            del self._of[next(iter(self._of))]

    def _keep(self, event: FleetEvent) -> None:
        """Figures of that moment and crash cards, which have files of their own, are left out: a line stays short."""
        replica = None if event.replica is None else msgspec.structs.replace(event.replica, load=None)
        assert self._journal is not None
        self._journal.append(msgspec.json.encode(msgspec.structs.replace(event, replica=replica, crash=None)))


def transition(event: FleetEvent, previous_state: str) -> Transition:
    """The change of state that an event tells of."""
    replica = event.replica
    assert replica is not None
    return Transition(
        at=event.at,
        generation=replica.generation,
        previous_state=previous_state,
        state=replica.state,
        reason=replica.reason,
    )


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
