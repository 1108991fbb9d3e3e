"""A start that fails half-way, with a real shim and a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from gpuserved.api.roots import from_environment
from gpuserved.core.assignment import Assignment
from gpuserved.core.events import EventKind
from gpuserved.core.profile import EngineName, Profile
from gpuserved.engines.base import Launch, LaunchContext
from gpuserved.host import shimclient
from gpuserved.host.sweep import marked_by
from gpuserved.replica import launcher

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

# As an API process whose engine does not ask to die with its parent, or has not come to it.
ENGINE_OUTLIVES_API = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1], "w").write("runs")
time.sleep(600)
"""


@pytest.fixture
def top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gs-start-") as made:  # short: socket paths must fit
        yield Path(made)


class Starting:
    """As much of an owner as starts a process."""

    def __init__(self, top: Path) -> None:
        self.runs = top / "engine-runs"
        self.nonce = ""
        self.posted: list[tuple[EventKind, Any]] = []
        self.id, self.installed = "a-0", None
        self.assignment = Assignment(self.id, Profile("a", "org/m", "m", engine=EngineName.COMMAND))
        engine = SimpleNamespace(installed=self._none, wants_port=self._none, launch=self.launch)
        self.around = SimpleNamespace(
            roots=from_environment({"GPUSERVE_ROOT": str(top)}, uid=os.getuid()),
            gate=SimpleNamespace(enter=self._nothing), gpus_free=self._nothing, gpu_locks=None, hf_token=None,
            orphan_ttl_s=None, record_intent=self._nothing, engine=lambda _profile: engine,
        )  # fmt: skip

    async def _nothing(self, *_given: object) -> None: ...

    def _none(self, *_given: object) -> None: ...

    def launch(self, context: LaunchContext) -> Launch:
        self.nonce = context.nonce
        argv = (sys.executable, "-I", "-S", "-c", ENGINE_OUTLIVES_API, str(self.runs))
        return Launch(argv, {"GPUSERVE_NONCE": context.nonce}, f"unix:{context.run_dir}/engine.sock")

    disarm = progress_at_start = started = _none

    def post(self, kind: EventKind, **more: object) -> None:
        self.posted.append((kind, more.get("cause")))


async def test_a_shim_that_is_killed_before_it_answers_leaves_no_engine(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim's death takes the API process with it, and nobody the engine below it: the GPU would stay full."""
    owner: Any = Starting(top)

    async def killed_half_way(spec: dict[str, object], **options: Any) -> None:
        started = await shimclient.launch(spec, **options)
        deadline = time.monotonic() + 30
        while not owner.runs.exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        os.kill(started.shim_pid, signal.SIGKILL)
        raise shimclient.ShimError("the shim ended without an answer: it said nothing")

    monkeypatch.setattr(launcher, "launch", killed_half_way)
    await launcher.run(cast("ReplicaController", owner), 1)
    assert [kind for kind, _ in owner.posted] == [EventKind.SPAWN_FAILED]
    assert "without an answer" in owner.posted[0][1].message
    assert marked_by(owner.nonce) == {}
    assert list((owner.around.roots.run / "r").iterdir()) == []
