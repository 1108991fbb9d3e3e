"""The daemon's events as Textual messages: one thread that connects, reads, and connects again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
from textual.message import Message

from gpuserved.api.errors import GpuserveError
from gpuserved.api.types import FleetEvent, Status

BACKOFF_S = 0.2
"""First wait before connecting again; doubles up to `BACKOFF_MAX_S`."""
BACKOFF_MAX_S = 5.0


class Source(Protocol):
    """What the screen needs of a control client."""

    def status(self) -> Status:
        """The fleet as it is now."""

    def events(self) -> Iterator[FleetEvent]:
        """A snapshot, then what changes. Ends, or raises, when the connection does."""


@dataclass
class Arrived(Message):
    """The daemon said something."""

    status: Status
    notice: str | None = None


@dataclass
class Lost(Message):
    """No daemon answers; the next try is in `retry_s`."""

    why: str
    retry_s: float


def fold(status: Status | None, event: FleetEvent) -> Status | None:
    """The fleet after one more event; None before the first snapshot."""
    if event.status is not None:
        return event.status
    if status is None or event.replica is None:
        return status
    changed = event.replica
    replicas = [changed if r.id == changed.id else r for r in status.replicas]
    if changed.id not in {r.id for r in replicas}:
        replicas.append(changed)
    return msgspec.structs.replace(status, replicas=replicas)


class Feed:
    """Reads one source for ever on a thread of its own.

    A daemon thread and not a Textual worker: leaving the screen must not wait for a read that is blocked on a silent daemon.
    """

    def __init__(self, source: Source, post: Callable[[Message], object]) -> None:
        self._source = source
        self._post = post
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin reading."""
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def close(self) -> None:
        """Post nothing more."""
        self._closed.set()

    def refresh(self) -> None:
        """Ask once for the whole status, beside the stream."""
        threading.Thread(target=self._ask, name="refresh", daemon=True).start()

    def _ask(self) -> None:
        try:
            self._send(Arrived(self._source.status(), "refreshed"))
        except (GpuserveError, OSError) as error:
            self._send(Lost(_sentence(error), 0.0))

    def _run(self) -> None:
        wait_s = BACKOFF_S
        while not self._closed.is_set():
            why = "the daemon closed the connection"
            try:
                if self._read():
                    wait_s = BACKOFF_S
            except (GpuserveError, OSError) as error:
                why = _sentence(error)
            self._send(Lost(why, wait_s))
            self._closed.wait(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    def _read(self) -> bool:
        """One connection until it ends; True where it brought something."""
        status: Status | None = None
        try:
            for event in self._source.events():
                status = fold(status, event)
                if status is not None:
                    self._send(Arrived(status, event.message))
                if self._closed.is_set():
                    break
        except (GpuserveError, OSError):
            if status is None:
                raise
        return status is not None

    def _send(self, message: Message) -> None:
        if not self._closed.is_set():
            self._post(message)


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
