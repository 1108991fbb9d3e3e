"""What the daemon tells of itself: a thread that reads its events for ever, over every loss of the connection.

A daemon thread: the control client blocks, and leaving the screen must wait for no read. Nothing of Textual is imported here: the
feed reads while the screen is still being imported, which takes ten times as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gpuserve_tui.feed.client import Client, sentence
from gpuserve_tui.model.board import fold, is_news
from gpuserved.api.errors import GpuserveError
from gpuserved.api.types import FleetEvent, Status, VersionView

BACKOFF_S = 0.2
"""First wait before connecting again; doubles up to `BACKOFF_MAX_S`."""
BACKOFF_MAX_S = 5.0


@dataclass(frozen=True)
class Arrived:
    """There is something in the feed's inbox."""


@dataclass(frozen=True)
class Lost:
    """No daemon answers."""

    why: str


@dataclass(frozen=True)
class Attached:
    """Connected, for the first time or again."""

    version: VersionView


Told: TypeAlias = Arrived | Lost | Attached
"""What a feed tells the screen."""


@dataclass
class Inbox:
    """What arrived since the screen last looked: the newest status and all news."""

    status: Status | None = None
    events: list[FleetEvent] = field(default_factory=list)
    past: list[FleetEvent] = field(default_factory=list)
    """What had happened before this feed began."""
    fresh: bool = False
    """Whether `status` has figures of a new second."""


class Feed:
    """Reads one daemon for ever. A burst of events is told once: the screen draws the newest state."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._post: Callable[[Told], object] | None = None
        self._told: list[Told] = []
        """Before anybody listened."""
        self._thread: threading.Thread | None = None
        self._first = True
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._inbox = Inbox()
        self._posted = False

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def listen(self, post: Callable[[Told], object]) -> None:
        """Tell `post`, from the feed's thread, what happens, and what has happened already."""
        with self._lock:
            told, self._told, self._post = self._told, [], post
        for each in told:
            post(each)

    def close(self) -> None:
        self._closed.set()

    def take(self) -> Inbox:
        """What has arrived; the inbox is empty then."""
        with self._lock:
            taken, self._inbox = self._inbox, Inbox(status=self._inbox.status)
            self._posted = False
        return taken

    def refresh(self) -> None:
        """Ask once for the whole status, beside the stream."""

        def ask() -> None:
            try:
                self._put(self._client.status(), [], fresh=False)
            except (GpuserveError, OSError) as error:
                self._send(Lost(sentence(error)))

        threading.Thread(target=ask, name="refresh", daemon=True).start()

    def _run(self) -> None:
        wait_s = BACKOFF_S
        while not self._closed.is_set():
            why = "the daemon closed the connection"
            try:
                if self._read():
                    wait_s = BACKOFF_S
            except (GpuserveError, OSError) as error:
                why = sentence(error)
            except Exception as error:  # whatever it is: a screen that silently stands still is worse
                why = f"{type(error).__name__}: {sentence(error)}"
            self._send(Lost(why))
            self._closed.wait(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    def _read(self) -> bool:
        """One connection until it ends; True where it brought something."""
        status: Status | None = None
        try:
            for event in self._client.events():
                begins = status is None
                if begins:
                    self._send(Attached(self._client.version()))
                status = fold(status, event)
                if status is not None:
                    news = [event] if is_news(event) else []
                    self._put(status, news, fresh=event.kind in {"snapshot", "telemetry"})
                if begins:  # after the figures: they are what somebody waits for
                    self._recall(self._client.recent_events().events)
                if self._closed.is_set():
                    break
        except (GpuserveError, OSError):
            if status is None:
                raise
        return status is not None

    def _recall(self, events: Sequence[FleetEvent]) -> None:
        """The past, the first time; later what happened while nobody was connected is news."""
        if not self._first:
            self._put(None, events, fresh=False)
            return
        self._first = False
        with self._lock:
            self._inbox.past.extend(events)
        self._put(None, [], fresh=False)

    def _put(self, status: Status | None, events: Sequence[FleetEvent], *, fresh: bool) -> None:
        with self._lock:
            self._inbox.status = status or self._inbox.status
            self._inbox.events.extend(events)
            self._inbox.fresh = self._inbox.fresh or fresh
            tell, self._posted = not self._posted, True
        if tell:
            self._send(Arrived())

    def _send(self, told: Told) -> None:
        if self._closed.is_set():
            return
        with self._lock:
            post = self._post
            if post is None:
                self._told.append(told)
        if post is not None:
            post(told)
