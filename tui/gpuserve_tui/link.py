"""The daemon's side of the screen: threads that read it, and what they tell.

Threads, and daemon threads at that: the control client blocks, and leaving the screen must wait for no read. Nothing of Textual
is imported here: the feed reads while the screen is still being imported, which takes ten times as long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from gpuserve_tui.view.board import fold, is_news
from gpuserved.api.errors import GpuserveError
from gpuserved.api.gpus import GpusRequest, GpusResult
from gpuserved.api.inspect import EventsView, LogBatch, LogPage, ProfilesView, ReplicaDetail
from gpuserved.api.types import (
    ActionResult,
    ApplyProfileRequest,
    ApplyResult,
    FleetEvent,
    ReplicasRequest,
    ScaleRequest,
    Status,
    VersionView,
)

BACKOFF_S = 0.2
"""First wait before connecting again; doubles up to `BACKOFF_MAX_S`."""
BACKOFF_MAX_S = 5.0
BATCHES_KEPT = 400
"""Log batches that wait for the screen: some minute of one source. Beyond, the oldest are counted as dropped."""


class Source(Protocol):
    """What the screen needs of a control client."""

    def status(self) -> Status: ...
    def version(self) -> VersionView: ...
    def events(self) -> Iterator[FleetEvent]: ...
    def recent_events(self) -> EventsView: ...
    def detail(self, replica: str) -> ReplicaDetail: ...
    def profiles(self) -> ProfilesView: ...
    def profile_diff(self, profile: str) -> ApplyResult: ...
    def apply_profile(self, profile: str, request: ApplyProfileRequest) -> ApplyResult: ...
    def act(self, verb: str, request: ReplicasRequest) -> ActionResult: ...
    def scale(self, request: ScaleRequest) -> ActionResult: ...
    def quarantine(self, request: GpusRequest) -> GpusResult: ...
    def release(self, request: GpusRequest) -> GpusResult: ...
    def log_page(self, source: str, *, before: str | None = None, lines: int = 500, match: str | None = None) -> LogPage: ...  # fmt: skip
    def follow_logs(self, sources: Sequence[str], *, lines: int = 100, after: Mapping[str, str] | None = None) -> Iterator[LogBatch]: ...  # fmt: skip


@dataclass(frozen=True)
class Arrived:
    """There is something in the feed's inbox."""


@dataclass(frozen=True)
class Lost:
    """No daemon answers; the next try is in `retry_s`."""

    why: str
    retry_s: float


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
    """Reads one source for ever. A burst of events is told once: the screen draws the newest state."""

    def __init__(self, source: Source) -> None:
        self._source = source
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
        """Begin reading, once."""
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
        """Post nothing more."""
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
                self._put(self._source.status(), [], fresh=False)
            except (GpuserveError, OSError) as error:
                self._send(Lost(sentence(error), 0.0))

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
            self._send(Lost(why, wait_s))
            self._closed.wait(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    def _read(self) -> bool:
        """One connection until it ends; True where it brought something."""
        status: Status | None = None
        try:
            for event in self._source.events():
                begins = status is None
                if begins:
                    self._send(Attached(self._source.version()))
                status = fold(status, event)
                if status is not None:
                    news = [event] if is_news(event) else []
                    self._put(status, news, fresh=event.kind in {"snapshot", "telemetry"})
                if begins:  # after the figures: they are what somebody waits for
                    self._recall(self._source.recent_events().events)
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


class LogTail:
    """Follows the logs of some sources. The screen takes what has come at its own pace."""

    def __init__(
        self, source: Source, names: Sequence[str], lines: int, places: Mapping[str, str] | None = None
    ) -> None:
        """:param places: logs that go on at a cursor, instead of beginning with their last `lines`."""
        self._source = source
        self._names = list(names)
        self._lines = lines
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._batches: deque[LogBatch] = deque()
        self._overflow = 0
        self._places = dict(places or {})
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def take(self) -> tuple[list[LogBatch], int]:
        """What has come, and how many lines came and were too many to keep."""
        with self._lock:
            batches, self._batches = list(self._batches), deque()
            overflow, self._overflow = self._overflow, 0
        return batches, overflow

    @property
    def places(self) -> dict[str, str]:
        """Where each log that was taken goes on."""
        with self._lock:
            return dict(self._places)

    def close(self) -> None:
        """Follow no longer."""
        self._closed.set()

    def _run(self) -> None:
        wait_s = BACKOFF_S
        while not self._closed.is_set():
            began = time.monotonic()
            with contextlib.suppress(
                Exception
            ):  # the feed says that the daemon is gone, or what else is wrong
                self._follow()
            wait_s = BACKOFF_S if time.monotonic() - began > BACKOFF_MAX_S else min(wait_s * 2, BACKOFF_MAX_S)
            self._closed.wait(wait_s)

    def _follow(self) -> None:
        for batch in self._source.follow_logs(self._names, lines=self._lines, after=self.places):
            if self._closed.is_set():
                return
            self._keep(batch)

    def _keep(self, batch: LogBatch) -> None:
        with self._lock:
            self._batches.append(batch)
            if batch.after is not None:
                self._places[batch.source] = batch.after
            while len(self._batches) > BATCHES_KEPT:
                gone = self._batches.popleft()
                self._overflow += len(gone.lines) + gone.dropped


def sentence(error: Exception) -> str:
    """An error as a line for the screen."""
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error) or type(error).__name__
