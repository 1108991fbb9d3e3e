"""Before a start: the GPUs it gets must have been left by those that leave them, with their memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from gpuserved.core.state import Goal
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.settings import CurrentSettings
from gpuserved.fleet.state import FleetState
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.services import GpuSetAside

POLL_S = 0.25


class GpuHandover:
    """Lets starts wait for GPUs of one fleet."""

    def __init__(
        self,
        state: FleetState,
        inventory: GpuInventory,
        quarantine: Quarantine,
        settings: CurrentSettings,
        hold: Callable[[str, str, Sequence[int]], None],
    ) -> None:
        """:param hold: sets a GPU aside until these processes are gone from it: UUID, who holds it, their PIDs."""
        self._state = state
        self._inventory = inventory
        self._quarantine = quarantine
        self._settings = settings
        self._hold = hold

    async def wait(self, replica: str, gpu_uuids: tuple[str, ...]) -> None:
        """Until replicas that are leaving these GPUs have left, and the memory of earlier starts is back.

        :raises GpuSetAside: one is quarantined, or becomes so because its memory does not come back.
        """
        controller = self._state.replicas.get(replica)
        self._refuse_set_aside(gpu_uuids)
        while gone := leaving(self._state.replicas, replica, gpu_uuids):
            if controller is not None:
                controller.waits(f"waits for {', '.join(gone)} to leave its GPU")
            await asyncio.sleep(POLL_S)
        deadline = time.monotonic() + self._settings.value.memory_back_s
        while held := await self._inventory.left_over(gpu_uuids):
            self._refuse_set_aside(gpu_uuids)
            if time.monotonic() > deadline:
                for uuid, pids in held.items():
                    who = ", ".join(map(str, pids))
                    self._hold(uuid, f"PID {who} of an earlier start still holds its memory", pids)
                self._refuse_set_aside(gpu_uuids)
            await asyncio.sleep(POLL_S)
        self._refuse_set_aside(gpu_uuids)

    def _refuse_set_aside(self, gpu_uuids: tuple[str, ...]) -> None:
        for record in self._quarantine.among(gpu_uuids):
            raise GpuSetAside(f"GPU {record.index} is quarantined: {record.explain()}")


def leaving(replicas: Mapping[str, ReplicaController], replica: str, gpu_uuids: tuple[str, ...]) -> list[str]:
    """Other replicas whose process is on one of these GPUs and is not to stay there."""
    found = []
    for name, controller in replicas.items():
        there = set(gpu_uuids) & set(controller.assignment.gpu_uuids)
        if name == replica or controller.process is None or not there:
            continue
        after = controller.next_assignment
        moves = after is not None and not there <= set(after.gpu_uuids)
        if moves or controller.r.goal is Goal.STOP:
            found.append(name)
    return found
