"""What a controller is given where no fleet is: real files, a real gate, and an engine that is whatever program the test names."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpuserved.api.crash import CrashCard
from gpuserved.api.roots import Roots, from_environment
from gpuserved.api.types import GpuView
from gpuserved.core.assignment import Assignment
from gpuserved.core.profile import EngineName, Limits, Profile
from gpuserved.core.state import State
from gpuserved.engines.base import Engine, Launch, LaunchContext
from gpuserved.host.deadline import within
from gpuserved.host.gpulock import GpuLocks
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.start_gate import StartGate

PATIENCE_S = 60.0
SLEEPS = "import time; time.sleep(600)"


class ScriptEngine(Engine):
    """Runs one Python program, which need not serve anything."""

    name = "script"

    def __init__(self, folder: Path, program: str = SLEEPS, *args: str) -> None:
        super().__init__(folder)
        self.nonces: list[str] = []
        self._argv = (sys.executable, "-I", "-S", "-c", program, *args)

    def check(self, profile: Profile) -> list[str]:
        del profile
        return []

    def launch(self, context: LaunchContext) -> Launch:
        self.nonces.append(context.nonce)
        return Launch(self._argv, {"GPUSERVE_NONCE": context.nonce}, f"unix:{context.run_dir}/engine.sock")


@dataclass
class StandIn:
    """Implements `Services` for the replicas of one test."""

    top: Path
    adapter: Engine
    gate: StartGate = field(default_factory=StartGate)
    orphan_ttl_s: float | None = None
    hf_token: str | None = None
    gpu_locks: GpuLocks | None = None
    cards: list[CrashCard] = field(default_factory=list)
    before_start: Callable[[], None] = lambda: None
    """What looking at the GPUs before a start comes to."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def roots(self) -> Roots:
        return from_environment({"GPUSERVE_ROOT": str(self.top)}, uid=os.getuid())

    def engine(self, profile: Profile) -> Engine:
        del profile
        return self.adapter

    def last_of_model(self, replica: str) -> bool:
        del replica
        return False

    def in_flight(self, replica: str, generation: int) -> int | None:
        del replica, generation
        return 0

    async def gpus_free(self, replica: str, gpu_uuids: tuple[str, ...]) -> None:
        del replica, gpu_uuids
        self.before_start()

    def gpu_views(self, gpu_uuids: tuple[str, ...]) -> list[GpuView]:
        del gpu_uuids
        return []

    def crashed(self, card: CrashCard) -> None:
        self.cards.append(card)

    def changed(self, replica: str, previous_state: str) -> None:
        del replica, previous_state
        self.moved.set()

    async def record_intent(self) -> None: ...

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what some change of a replica makes true."""

        async def wait() -> None:
            while not true():
                self.moved.clear()
                await self.moved.wait()

        await within(wait(), PATIENCE_S)

    async def until_in(self, controller: ReplicaController, state: State) -> None:
        """Wait until the replica is in this state."""
        await self.until(lambda: controller.snapshot.r.state is state)


def assignment(replica: str = "a-0", *, limits: Limits | None = None) -> Assignment:
    """One replica on one GPU."""
    profile = Profile("a", "org/m", "m", engine=EngineName.COMMAND, limits=limits or Limits())
    return Assignment(replica, profile, (0,), ("SIM-0",))
