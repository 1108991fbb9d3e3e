"""Looks at every sample for faults of GPUs, and does what `core/gpufault.py` says that they mean."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpuserved.api.types import GpuView
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.gpufault import Fault, Health, Verdict, faults, merged, standing, worst
from gpuserved.core.state import State
from gpuserved.fleet import evacuate
from gpuserved.fleet.quarantine import HELD
from gpuserved.host import procfs
from gpuserved.replica.controller import ReplicaController
from gpuserved.telemetry.provider import LOST, GpuSample

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)

TRIAL_S = 5.0
"""So long a replica that may have lost its context has for one token. One that is saturated shows by its steps that it computes."""
_SERVES = frozenset({State.READY, State.UNHEALTHY, State.DRAINING})
"""A start that loses its context ends by itself, or stalls, which has a deadline of its own."""


class GpuWatch:
    """Belongs to one fleet's loop. `look` is called after every sample and never blocks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._health: dict[str, Health] = {}
        self._present: dict[str, int] = {}
        """Replica -> the start of it that was there at the look before: an older event cannot speak of a newer one."""
        self._stopping: dict[tuple[str, int], float] = {}
        """Start of a replica -> monotonic seconds since when it is being stopped."""
        self._tasks: set[asyncio.Task[None]] = set()

    def standing(self, uuid: str) -> list[str]:
        """What is lastingly wrong with a GPU, by name."""
        return sorted(standing(self._health.get(uuid, Health())))

    def look(self, samples: Sequence[GpuSample]) -> None:
        """Take one round of samples."""
        views = {gpu.uuid: gpu for gpu in self._fleet.gpu_list()}
        for sample in samples:
            gpu = views.get(sample.uuid)
            if gpu is not None:
                self._judge(gpu, sample)
        self._hold_the_unkillable(views)
        self._heal(views)
        self._present = {name: owner.r.generation for name, owner in self._fleet.owners.items()}

    # --- faults

    def _judge(self, gpu: GpuView, sample: GpuSample) -> None:
        now, before = health_of(sample), self._health.get(gpu.uuid)
        self._health[gpu.uuid] = merged(before, now)
        accepted = self._fleet.quarantine.still_accepted(gpu.uuid, self.standing(gpu.uuid))
        found = [fault for fault in faults(before, now) if fault.standing not in accepted]
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
        fleet, meaning = self._fleet, fault.meaning
        record = fleet.quarantine.of.get(gpu.uuid)
        if record is not None and record.kind not in {HELD, Verdict.INSPECT.value}:
            return  # what it is set aside for already asks for as much, or is the operator's own
        fleet.quarantine.set_aside(gpu, meaning.verdict.value, fault.reason)
        fleet.generation += 1
        kill = None if meaning.computes else Cause(CauseKind.GPU_FAULT, f"GPU {gpu.index}: {fault.reason}")
        self._soon(self._evacuate(gpu.uuid, kill))

    async def _evacuate(self, uuid: str, kill: Cause | None) -> None:
        async with self._fleet.mutations:
            await evacuate.evacuate(self._fleet, {uuid}, kill=kill, spare_last=True)

    def _try_tenants(self, gpu: GpuView, fault: Fault) -> None:
        """Whose context is gone the event does not say, and whoever lost one may have ended before the sample that shows it. So each
        tenant that serves is asked for a token.
        """
        for owner in self._fleet.owners.values():
            there = (
                gpu.uuid in owner.assignment.gpu_uuids and self._present.get(owner.id) == owner.r.generation
            )
            if there and owner.r.state in _SERVES:
                cause = Cause(
                    CauseKind.GPU_FAULT, f"{fault.reason} on GPU {gpu.index}: its context there is lost"
                )
                self._soon(self._try(gpu, owner, owner.r.generation, cause))

    async def _try(self, gpu: GpuView, owner: ReplicaController, generation: int, cause: Cause) -> None:
        wrong = await owner.no_token(TRIAL_S)
        if wrong is None:
            self._say(gpu, f"the error was not {owner.id}'s, which computes as before", "info")
        else:
            message = f"{cause.message} ({wrong})"
            owner.post(EventKind.GPU_FAULT, generation=generation, cause=Cause(cause.kind, message))

    # --- what holds a GPU and should not

    def hold(self, uuid: str, who: str, pids: Sequence[int]) -> None:
        """Set a GPU aside until these processes are gone from it, and see whether its replicas can go elsewhere."""
        gpu = next((gpu for gpu in self._fleet.gpu_list() if gpu.uuid == uuid), None)
        if gpu is None or uuid in self._fleet.quarantine:
            return
        marks = [(pid, procfs.start_ticks(pid) or 0) for pid in pids]
        self._fleet.quarantine.set_aside(gpu, HELD, who, marks)
        self._fleet.generation += 1
        self._soon(self._evacuate(uuid, None))

    def _hold_the_unkillable(self, views: Mapping[str, GpuView]) -> None:
        """A tree that SIGKILL does not end (a process stuck in the driver) keeps its GPUs from everybody."""
        now, still = time.monotonic(), {}
        for name, owner in self._fleet.owners.items():
            if owner.r.state is not State.STOPPING or owner.process is None:
                continue
            key = (name, owner.r.generation)
            still[key] = self._stopping.get(key, now)
            patience_s = owner.assignment.profile.limits.term_grace_s + self._fleet.memory_back_s
            if now - still[key] < patience_s:
                continue
            shim = owner.process.shim_pid or 0
            pids = sorted(procfs.tree(shim, procfs.processes()) - {shim})
            for uuid in set(owner.assignment.gpu_uuids) & set(views):
                if pids and uuid not in self._fleet.quarantine:
                    self.hold(
                        uuid, f"PID {', '.join(map(str, pids))} of {name} does not end after SIGKILL", pids
                    )
        self._stopping = still

    def _heal(self, views: Mapping[str, GpuView]) -> None:
        """Release what was held, once nothing holds it."""
        quarantine = self._fleet.quarantine
        for record in [r for r in quarantine.of.values() if r.kind == HELD and r.uuid in views]:
            gpu = views[record.uuid]
            listed = {owner.pid for owner in gpu.owners}
            held = [pid for pid, ticks in record.pids if pid in listed or procfs.is_same(pid, ticks)]
            if gpu.state != LOST and not held:
                quarantine.release(record.uuid, self.standing(record.uuid))
                self._fleet.generation += 1
                self._soon(self._come_back())

    async def _come_back(self) -> None:
        async with self._fleet.mutations:
            await evacuate.come_back(self._fleet)

    # --- words and tasks

    def _say(self, gpu: GpuView, what: str, severity: str) -> None:
        message = f"GPU {gpu.index} ({gpu.name}): {what}"
        log.warning("%s", message)
        self._fleet.bus.publish("notice", message=message, severity=severity)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop keeps only weak references to tasks
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a GPU's replicas could not be moved", exc_info=task.exception())


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
