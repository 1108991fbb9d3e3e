"""Ends of real processes where something on the way to them fails: each comes to be known, and nobody waits for it for ever."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from tests.replica.conftest import Make
from tests.replica.stand_in import ScriptEngine, StandIn, assignment

from gpuserved.core.cause import Cause, CauseKind, ExitInfo
from gpuserved.core.events import EventKind
from gpuserved.core.profile import Limits
from gpuserved.core.state import State
from gpuserved.host.sweep import Sweep, marked_by
from gpuserved.replica import process as process_module
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.process import ReplicaProcess

SOON = Limits(term_grace_s=0.2)


async def started(services: StandIn, controller: ReplicaController) -> tuple[int, int]:
    """PIDs of the process and its shim."""
    controller.post(EventKind.START)
    await services.until(
        lambda: controller.snapshot.process is not None and controller.snapshot.phase is None
    )
    found = controller.snapshot.process
    assert found is not None
    assert found.pid is not None
    assert found.shim_pid is not None
    return found.pid, found.shim_pid


class Puzzling(ScriptEngine):
    """Its log is more than its adapter can read."""

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        raise RecursionError(f"{info} {len(tail)}")


async def test_an_end_whose_cause_cannot_be_found_is_an_end(top: Path, control: Make) -> None:
    services = StandIn(top, Puzzling(top))
    controller = control(services)
    pid, _ = await started(services, controller)
    os.kill(pid, signal.SIGKILL)
    await services.until_in(controller, State.BACKOFF)
    cause = controller.snapshot.r.cause
    assert cause is not None
    assert cause.kind is CauseKind.KILLED


async def test_a_kill_that_fails_is_tried_again(
    top: Path, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of a kill is armed after it: a kill that raises must not take the deadline along."""
    tries: list[str] = []
    kill = ReplicaProcess.kill

    async def kill_at_the_second_try(process: ReplicaProcess) -> None:
        tries.append(process.snapshot.nonce)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        await kill(process)

    monkeypatch.setattr(ReplicaProcess, "kill", kill_at_the_second_try)
    services = StandIn(top, ScriptEngine(top))
    controller = control(services, assignment(limits=SOON))
    await started(services, controller)
    controller.post(EventKind.GPU_FAULT, cause=Cause(CauseKind.GPU_FAULT, "the GPU has failed"))
    await services.until_in(controller, State.BACKOFF)
    assert len(tries) > 1


async def test_a_killed_shim_s_processes_are_looked_for_until_that_works(
    top: Path, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    strike = Sweep.strike

    def strike_at_the_second_try(sweep: Sweep) -> list[int]:
        if failures:
            raise failures.pop()
        return strike(sweep)

    monkeypatch.setattr(process_module, "SWEEP_EVERY_S", 0.02)
    engine = ScriptEngine(top)
    services = StandIn(top, engine)
    controller = control(services)
    _, shim_pid = await started(services, controller)
    monkeypatch.setattr(Sweep, "strike", strike_at_the_second_try)
    os.kill(shim_pid, signal.SIGKILL)
    await services.until_in(controller, State.BACKOFF)
    cause = controller.snapshot.r.cause
    assert cause is not None
    assert cause.kind is CauseKind.SHIM_LOST
    assert failures == []
    assert marked_by(engine.nonces[0]) == {}
