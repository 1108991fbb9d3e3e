"""Looks at every sample for faults of GPUs, and does what `core/gpufault.py` says that they mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from gpuserved.api.types import GpuView
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.gpufault import Fault, Health, Verdict, faults, lasting_faults, merged, worst
from gpuserved.core.state import State
from gpuserved.fleet.events import Bus
from gpuserved.fleet.quarantine import HELD, Quarantine
from gpuserved.fleet.settings import CurrentSettings
from gpuserved.fleet.state import FleetState
from gpuserved.host import procfs
from gpuserved.host.tasks import Tasks
from gpuserved.replica.controller import ReplicaController
from gpuserved.telemetry.provider import LOST, GpuSample

log = logging.getLogger(__name__)

TRIAL_S = 5.0
"""So long a replica that may have lost its context has for one token. One that is saturated shows by its steps that it computes."""


class GpuMoves(Protocol):
    """What becomes of the replicas of a GPU. Each returns once they have been told: replica -> what becomes of it, in words."""

    async def move_off(
        self, uuids: Collection[str], *, kill: Cause | None = None, spare_last: bool = False
    ) -> dict[str, str]:
        """They leave GPUs that have been set aside."""

    async def come_back(self) -> dict[str, str]:
        """What waited for a GPU that has been released starts."""


class GpuHealth:
    """Judges the GPUs of one fleet. `look` is called after every sample and never blocks."""

    def __init__(
        self,
        state: FleetState,
        quarantine: Quarantine,
        settings: CurrentSettings,
        bus: Bus,
        moves: GpuMoves,
        gpus: Callable[[], Sequence[GpuView]],
    ) -> None:
        """:param gpus: as they are shown, with those that are set aside marked."""
        self._state = state
        self._quarantine = quarantine
        self._settings = settings
        self._bus = bus
        self._moves = moves
        self._gpus = gpus
        self._tasks = Tasks(log)
        self._health: dict[str, Health] = {}
        self._present: dict[str, int] = {}
        """Replica -> the start of it that was there at the look before: an older event cannot speak of a newer one."""
        self._stopping: dict[tuple[str, int], float] = {}
        """Start of a replica -> monotonic seconds since when it is being stopped."""
        self._shown: dict[str, str] = {}
        """UUID -> the state that was last told of."""

    async def close(self) -> None:
        """Judge no more."""
        await self._tasks.close()

    def lasting(self, uuid: str) -> list[str]:
        """What is lastingly wrong with a GPU, by name."""
        return sorted(lasting_faults(self._health.get(uuid, Health())))

    def look(self, samples: Sequence[GpuSample]) -> None:
        """Take one round of samples."""
        views = {gpu.uuid: gpu for gpu in self._gpus()}
        for sample in samples:
            gpu = views.get(sample.uuid)
            if gpu is not None:
                self._judge(gpu, sample)
        self._hold_the_unkillable(views)
        self._heal(views)
        self._present = {name: c.r.generation for name, c in self._state.replicas.items()}
        for gpu in self._gpus():
            self._tell(gpu)

    def _tell(self, gpu: GpuView) -> None:
        """Report a GPU that was lost, set aside or came back."""
        before = self._shown.get(gpu.uuid, "OK")
        self._shown[gpu.uuid] = gpu.state
        if gpu.state != before:
            why = f": {gpu.reason}" if gpu.reason else ""
            severity = "info" if gpu.state == "OK" else "error"
            message = f"GPU {gpu.index} ({gpu.name}): {before} -> {gpu.state}{why}"
            self._bus.publish("notice", message=message, severity=severity)

    # --- faults

    def _judge(self, gpu: GpuView, sample: GpuSample) -> None:
        now, before = health_of(sample), self._health.get(gpu.uuid)
        self._health[gpu.uuid] = merged(before, now)
        accepted = self._quarantine.still_accepted(gpu.uuid, self.lasting(gpu.uuid))
        found = [fault for fault in faults(before, now) if fault.lasting not in accepted]
        decides = worst(found)
        if decides is None:
            return
        for reason in dict.fromkeys(fault.reason for fault in found):
            self._say(gpu, reason, "error" if decides.meaning.verdict.quarantines else "warning")
        if decides.meaning.verdict.quarantines:
            self._set_aside(gpu, decides)
        elif decides.meaning.verdict is Verdict.RESTART:
            self._try_tenants(gpu, decides)

    def _set_aside(self, gpu: GpuView, fault: Fault) -> None:
        meaning = fault.meaning
        record = self._quarantine.of.get(gpu.uuid)
        if record is not None and record.kind not in {HELD, Verdict.INSPECT.value}:
            return  # what it is set aside for already asks for as much, or is the operator's own
        self._quarantine.set_aside(gpu, meaning.verdict.value, fault.reason)
        self._state.commit()
        kill = None if meaning.computes else Cause(CauseKind.GPU_FAULT, f"GPU {gpu.index}: {fault.reason}")
        self._soon(self._moves.move_off({gpu.uuid}, kill=kill, spare_last=True), gpu)

    def _try_tenants(self, gpu: GpuView, fault: Fault) -> None:
        """Whose context is gone the event does not say, and whoever lost one may have ended before the sample that shows it. So each
        tenant that serves is asked for a token.
        """
        for name, controller in self._state.replicas.items():
            generation, uuids = controller.r.generation, controller.assignment.gpu_uuids
            there = gpu.uuid in uuids and self._present.get(name) == generation
            # A start that loses its context ends by itself, or stalls, which has a deadline of its own.
            if there and controller.r.state.serves:
                said = f"{fault.reason} on GPU {gpu.index}: its context there is lost"
                self._soon(self._try(gpu, controller, generation, said), gpu)

    async def _try(self, gpu: GpuView, tenant: ReplicaController, generation: int, said: str) -> None:
        wrong = await tenant.no_token(TRIAL_S)
        if wrong is None:
            self._say(gpu, f"the error was not {tenant.id}'s, which computes as before", "info")
        else:
            cause = Cause(CauseKind.GPU_FAULT, f"{said} ({wrong})")
            tenant.post(EventKind.GPU_FAULT, generation=generation, cause=cause)

    # --- what holds a GPU and should not

    def hold(self, uuid: str, who: str, pids: Sequence[int]) -> None:
        """Set a GPU aside until these processes are gone from it, and see whether its replicas can go elsewhere."""
        gpu = next((gpu for gpu in self._gpus() if gpu.uuid == uuid), None)
        if gpu is None or uuid in self._quarantine:
            return
        marks = [(pid, procfs.start_ticks(pid) or 0) for pid in pids]
        self._quarantine.set_aside(gpu, HELD, who, marks)
        self._state.commit()
        self._soon(self._moves.move_off({uuid}, spare_last=True), gpu)

    def _hold_the_unkillable(self, views: Mapping[str, GpuView]) -> None:
        """A tree that SIGKILL does not end (a process stuck in the driver) keeps its GPUs from everybody."""
        now, still = time.monotonic(), {}
        for name, controller in self._state.replicas.items():
            if controller.r.state is not State.STOPPING or controller.process is None:
                continue
            key = (name, controller.r.generation)
            still[key] = self._stopping.get(key, now)
            grace_s = controller.assignment.profile.limits.term_grace_s
            if now - still[key] < grace_s + self._settings.value.memory_back_s:
                continue
            shim = controller.process.shim_pid or 0
            pids = sorted(procfs.tree(shim, procfs.processes()) - {shim})
            who = f"PID {', '.join(map(str, pids))} of {name} does not end after SIGKILL"
            for uuid in set(controller.assignment.gpu_uuids) & set(views):
                if pids and uuid not in self._quarantine:
                    self.hold(uuid, who, pids)
        self._stopping = still

    def _heal(self, views: Mapping[str, GpuView]) -> None:
        """Release what was held, once nothing holds it."""
        for record in [r for r in self._quarantine.of.values() if r.kind == HELD and r.uuid in views]:
            gpu = views[record.uuid]
            listed = {process.pid for process in gpu.owners}
            held = [pid for pid, ticks in record.pids if pid in listed or procfs.is_same(pid, ticks)]
            if gpu.state != LOST and not held:
                self._quarantine.release(record.uuid, self.lasting(record.uuid))
                self._state.commit()
                self._soon(self._moves.come_back(), gpu)

    # --- words and tasks

    def _say(self, gpu: GpuView, what: str, severity: str) -> None:
        message = f"GPU {gpu.index} ({gpu.name}): {what}"
        log.warning("%s", message)
        self._bus.publish("notice", message=message, severity=severity)

    def _soon(self, work: Awaitable[object], gpu: GpuView) -> None:
        async def done() -> None:
            await work

        self._tasks.start(done(), f"moving the replicas of GPU {gpu.index}")


def health_of(sample: GpuSample) -> Health:
    """What a sample tells of a GPU's health."""
    return Health(
        lost=sample.state == LOST,
        ecc_uncorrected=sample.ecc_uncorrected,
        remap_failed=sample.remap_failed,
        remap_pending=sample.remap_pending,
        recovery=sample.recovery,
        xids=sample.xids or (),
    )
