"""Starts that fail on the way, with real shims and real processes: each ends with a cause, holds nobody up, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.replica.conftest import Make
from tests.replica.stand_in import PATIENCE_S, ScriptEngine, StandIn, assignment

from gpuserved.api.crash import CrashCard
from gpuserved.core.cause import CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.profile import Profile
from gpuserved.core.state import State
from gpuserved.engines.installed import Installed
from gpuserved.host import shimclient
from gpuserved.host.deadline import within
from gpuserved.host.sweep import marked_by
from gpuserved.replica import launcher
from gpuserved.replica.process import ReplicaProcess

# As an API process whose engine does not ask to die with its parent, or has not come to it.
ENGINE_OUTLIVES_API = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1], "w").write("runs")
time.sleep(600)
"""


def folders_left(services: StandIn) -> list[Path]:
    folder = services.roots.run / "r"
    return list(folder.iterdir()) if folder.is_dir() else []


async def test_a_shim_that_is_killed_before_it_answers_leaves_no_engine(
    top: Path, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim's death takes the API process with it, and nobody the engine below it: the GPU would stay full."""
    runs = top / "engine-runs"
    engine = ScriptEngine(top, ENGINE_OUTLIVES_API, str(runs))
    services = StandIn(top, engine)

    async def killed_half_way(spec: dict[str, object], **options: Any) -> None:
        started = await shimclient.launch(spec, **options)
        deadline = time.monotonic() + 30
        while not runs.exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        os.kill(started.shim_pid, signal.SIGKILL)
        raise shimclient.ShimError("the shim ended without an answer: it said nothing")

    monkeypatch.setattr(launcher, "launch", killed_half_way)
    controller = control(services)
    controller.post(EventKind.START)
    await services.until_in(controller, State.BACKOFF)
    cause = controller.snapshot.r.cause
    assert cause is not None
    assert (cause.kind, "without an answer" in cause.message) == (CauseKind.SPAWN_FAILED, True)
    assert marked_by(engine.nonces[0]) == {}
    assert folders_left(services) == []


class Unreadable(ScriptEngine):
    """Its environment cannot be looked at."""

    def __init__(self, top: Path, error: Exception) -> None:
        super().__init__(top)
        self._error = error

    def installed(self, profile: Profile) -> Installed | None:
        del profile
        raise self._error


FAILURES = [
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), CauseKind.OUT_OF_MEMORY, "Too many open files"),
    (
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
        CauseKind.OUT_OF_MEMORY,
        "Too many open files in system",
    ),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), CauseKind.SPAWN_FAILED, "Permission denied"),
    (RuntimeError("a bug"), CauseKind.SPAWN_FAILED, "RuntimeError: a bug"),
]


@pytest.mark.parametrize("where", ["looking at GPUs", "before the fork"])
@pytest.mark.parametrize(("error", "kind", "said"), FAILURES)
async def test_whatever_a_start_fails_with_is_its_cause_and_the_next_one_has_its_turn(
    top: Path, control: Make, where: str, error: Exception, kind: CauseKind, said: str
) -> None:
    """A start that ends without a word would be STARTING for ever, and every later start of its GPU and its model wait for it."""
    services = StandIn(top, Unreadable(top, error) if where == "before the fork" else ScriptEngine(top))

    def fail() -> None:
        if where == "looking at GPUs":
            raise error

    services.before_start = fail
    controller = control(services)
    controller.post(EventKind.START)
    await services.until_in(controller, State.BACKOFF)
    cause = controller.snapshot.r.cause
    assert cause is not None
    assert (cause.kind, cause.message) == (kind, f"could not be started: {said}")
    await within(services.gate.enter("b-0", ("SIM-0",), launcher.model_key(assignment().profile)), PATIENCE_S)
    assert folders_left(services) == []


async def test_a_stop_that_follows_a_start_at_once_needs_no_deadline(top: Path, control: Make) -> None:
    """The start's task has not run yet when it is called back: it can post nothing, and the stop would last `term_grace_s`."""
    services = StandIn(top, ScriptEngine(top))
    controller = control(services)
    controller.post(EventKind.START)
    controller.post(EventKind.STOP)
    soon = time.monotonic() + controller.snapshot.assignment.profile.limits.term_grace_s / 2
    await services.until(lambda: controller.snapshot.r.generation == 1 and controller.snapshot.is_down)
    assert time.monotonic() < soon


async def test_a_process_that_cannot_be_attached_to_is_ended(
    top: Path, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start has failed, and the next one would find the GPU full."""

    async def no_descriptors(_process: ReplicaProcess) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    engine = ScriptEngine(top)
    services = StandIn(top, engine)
    monkeypatch.setattr(ReplicaProcess, "attach", no_descriptors)
    controller = control(services)
    controller.post(EventKind.START)
    await services.until_in(controller, State.BACKOFF)
    assert controller.snapshot.process is None
    assert marked_by(engine.nonces[0]) == {}
    assert folders_left(services) == []


async def test_a_card_that_cannot_be_made_keeps_nobody_from_restarting(
    top: Path, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = StandIn(top, ScriptEngine(top, "raise SystemExit(3)"))

    def refuse(_services: StandIn, card: CrashCard) -> None:
        raise RuntimeError(card.message)

    monkeypatch.setattr(StandIn, "crashed", refuse)
    controller = control(services)
    controller.post(EventKind.START)
    await services.until_in(controller, State.BACKOFF)
    assert controller.snapshot.r.history.crashes_in_a_row == 1
