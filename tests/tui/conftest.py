"""A daemon that does what a test tells it to, behind the same calls as the real control client."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
from textual.pilot import Pilot

# Test files share modules of this folder; under --import-mode=importlib the repository is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.tui.fleets import normal

from gpuserve_tui.model import state
from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import GpuserveError, Unavailable
from gpuserved.api.inspect import (
    EventsView,
    LogBatch,
    LogPage,
    ProfilesView,
    ProfileView,
    ReplicaDetail,
    Transition,
)
from gpuserved.api.types import (
    PROTOCOL_VERSION,
    ActionResult,
    ApplyProfileRequest,
    ApplyResult,
    Change,
    FleetEvent,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    ReplicaView,
    ScaleRequest,
    Status,
    VersionView,
)

Request: TypeAlias = ReplicasRequest | ScaleRequest | ApplyProfileRequest | GpusRequest


class ScriptedDaemon:
    """`events()` yields what is put here, like a control client's stream; a cut ends or breaks it."""

    def __init__(self) -> None:
        self.current: Status | None = None
        self.connections = 0
        self.calls: list[tuple[str, Request]] = []
        """Every change that was asked for."""
        self.answer: GpuserveError | None = None
        """Raised by the next changes."""
        self.may_operate = True
        self.pages: list[LogPage] = []
        self.files: dict[str, list[str]] = {}
        """Whole logs, for tests that go back a long way."""
        self.page_questions: list[tuple[str, str | None, str | None]] = []
        self.found = [ProfileView(name="qwen", source="/etc/qwen.toml", model="Qwen/Qwen3-8B", engine="vllm",
                                  replicas=8, applied_text="replicas = 8\n", source_text="replicas = 6\n", differs=True)]  # fmt: skip
        self.plan = ApplyResult(
            generation=4, changes=[Change(replica="qwen-7", action="stop", why="no longer wanted")]
        )
        self.log: queue.Queue[LogBatch] = queue.Queue()
        self.followed: list[list[str]] = []
        self.told = EventsView()
        self.card: CrashCard | None = None
        self.hold = threading.Event()
        """Cleared: changes do not come back."""
        self.hold.set()
        self._queue: queue.Queue[FleetEvent | Exception | None] = queue.Queue()
        self._seq = 0

    def status(self) -> Status:
        if self.current is None:
            raise Unavailable("no daemon listens at /x.sock")
        return self.current

    def version(self) -> VersionView:
        return VersionView(version="1", protocol=PROTOCOL_VERSION, may_operate=self.may_operate)

    def events(self) -> Iterator[FleetEvent]:
        self.connections += 1
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def recent_events(self) -> EventsView:
        return self.told

    def detail(self, replica: str) -> ReplicaDetail:
        view = next(r for r in self.status().replicas if r.id == replica)
        return ReplicaDetail(
            crash=self.card,
            replica=view, command=["vllm", "serve", "Qwen/Qwen3-8B", "--uds", "/run/x sock"],
            environment={"HF_TOKEN": "********"}, last_lines=["[/] RuntimeError: CUDA error"],
            history=[Transition(at=0.0, generation=3, previous_state="READY", state="BACKOFF", reason="killed by SIGKILL")],
        )  # fmt: skip

    def profiles(self) -> ProfilesView:
        return ProfilesView(generation=4, profiles=self.found)

    def profile_diff(self, profile: str) -> ApplyResult:
        del profile
        return self.plan

    def apply_profile(self, profile: str, request: ApplyProfileRequest) -> ApplyResult:
        self._asked(f"apply {profile}", request)
        return self.plan

    def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        self._asked(verb, request)
        return ActionResult(
            generation=(request.generation or 0) + 1, replicas=dict.fromkeys(request.replicas, "DONE")
        )

    def scale(self, request: ScaleRequest) -> ActionResult:
        self._asked("scale", request)
        return ActionResult(generation=(request.generation or 0) + 1)

    def quarantine(self, request: GpusRequest) -> GpusResult:
        self._asked("quarantine", request)
        return self._gpu(request, "QUARANTINED", {"qwen-0": "waits for the release"})

    def release(self, request: GpusRequest) -> GpusResult:
        self._asked("release", request)
        return self._gpu(request, "OK", {"qwen-0": "is started on GPU 0"})

    def _gpu(self, request: GpusRequest, state: str, told: dict[str, str]) -> GpusResult:
        assert self.current is not None
        chosen = [
            msgspec.structs.replace(g, state=state) for g in self.current.gpus if g.uuid in request.gpus
        ]
        return GpusResult(generation=(request.generation or 0) + 1, gpus=chosen, replicas=told)

    def log_page(
        self, source: str, *, before: str | None = None, lines: int = 500, match: str | None = None
    ) -> LogPage:
        self.page_questions.append((source, before, match))
        if source in self.files:  # a cursor is the number of lines before it
            text = self.files[source]
            end = len(text) if before is None else int(before)
            start = max(0, end - lines)
            return LogPage(lines=text[start:end], before=str(start) if start else None)
        return self.pages.pop(0) if self.pages else LogPage(lines=[])

    def follow_logs(
        self, sources: Sequence[str], *, lines: int = 100, after: Mapping[str, str] | None = None
    ) -> Iterator[LogBatch]:
        del lines, after
        self.followed.append(list(sources))
        mine = len(self.followed)
        while len(self.followed) == mine:
            try:
                yield self.log.get(timeout=0.05)
            except queue.Empty:
                continue

    def _asked(self, name: str, request: Request) -> None:
        self.calls.append((name, request))
        self.hold.wait(20)
        if self.answer is not None:
            raise self.answer

    def snapshot(self, status: Status) -> None:
        self.current = status
        self._put(FleetEvent(seq=self._next(), at=time.time(), kind="snapshot", status=status))

    def telemetry(self, status: Status) -> None:
        self.current = status
        self._put(FleetEvent(seq=self._next(), at=time.time(), kind="telemetry", status=status))

    def replica(
        self, replica: ReplicaView, previous: str | None = None, generation: int | None = None
    ) -> None:
        if self.current is not None:
            others = [replica if r.id == replica.id else r for r in self.current.replicas]
            self.current = msgspec.structs.replace(self.current, replicas=others)
        event = FleetEvent(
            seq=self._next(), at=time.time(), kind="replica", replica=replica, previous_state=previous,
            generation=generation,
        )  # fmt: skip
        self._put(event)

    def cut(self, error: Exception | None = None) -> None:
        self.current = None
        self._put(error)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _put(self, item: FleetEvent | Exception | None) -> None:
        self._queue.put(item)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted daemon sends figures once: on a busy machine they must not grow old while keys are pressed."""
    monkeypatch.setattr(state, "SILENT_S", 600.0)


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon()
    yield scripted
    scripted.hold.set()
    scripted.followed.append([])
    scripted.cut()


@pytest.fixture
def fleet() -> Status:
    return normal()


@pytest.fixture
def until() -> Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]:
    """Wait for a condition on the screen, with a deadline."""

    async def wait(pilot: Pilot[int], condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, "the screen never came to show it"
            await pilot.pause(0.02)

    return wait
