"""What an operator asks of single GPUs: quarantine and release."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpuserved.api.errors import Conflict, Invalid, NotFound, Refused
from gpuserved.api.types import GpusRequest, GpusResult, GpuView
from gpuserved.fleet.gpu_health import GpuHealth, GpuMoves
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.quarantine import NO_REASON, OPERATOR, Quarantine
from gpuserved.fleet.state import FleetState

REASON_MAX = 200


class QuarantineRequests:
    """Carries them out for one fleet."""

    def __init__(
        self,
        state: FleetState,
        quarantine: Quarantine,
        inventory: GpuInventory,
        health: GpuHealth,
        moves: GpuMoves,
        gpus: Callable[[], Sequence[GpuView]],
    ) -> None:
        """:param gpus: as they are shown, with those that are set aside marked."""
        self._state = state
        self._quarantine = quarantine
        self._inventory = inventory
        self._health = health
        self._moves = moves
        self._gpus = gpus

    async def quarantine(self, request: GpusRequest) -> GpusResult:
        """Set GPUs aside; their replicas are drained and move to others, or wait.

        :raises NotFound: or Invalid, or Conflict: nothing was touched.
        """
        self._state.expect(request.generation)
        gpus = self._named(request.gpus)
        reason = (request.reason or "").strip() or None
        if reason is not None and (len(reason) > REASON_MAX or not reason.isprintable()):
            raise Invalid(
                "the reason is not one line of text", f"use at most {REASON_MAX} printable characters"
            )
        fresh = [gpu for gpu in gpus if gpu.uuid not in self._quarantine]
        for gpu in gpus:
            if gpu in fresh or reason is not None:
                self._quarantine.set_aside(gpu, OPERATOR, reason or NO_REASON)
        notes = [
            f"GPU {gpu.index} was quarantined already; it is for: {self._quarantine.of[gpu.uuid].reason}"
            for gpu in gpus
            if gpu not in fresh
        ]
        if not fresh:
            return self._result(gpus, {}, notes)
        self._state.commit()
        return self._result(gpus, await self._moves.move_off({gpu.uuid for gpu in fresh}), notes)

    async def release(self, request: GpusRequest) -> GpusResult:
        """Let GPUs be used again, whatever they were set aside for; what waited for them starts.

        :raises Refused: one of them is lost: nothing can run there.
        """
        self._state.expect(request.generation)
        gpus = self._named(request.gpus)
        shown = {gpu.uuid for gpu in self._inventory.views()}
        for gpu in gpus:
            if gpu.state == "LOST" and gpu.uuid in shown:
                raise Refused(
                    f"GPU {gpu.index} is LOST: it answers no query, and nothing can run there",
                    f"sudo nvidia-smi --gpu-reset -i {gpu.index}, or restart the host; then release it",
                )
        held = [gpu for gpu in gpus if gpu.uuid in self._quarantine]
        for gpu in held:
            self._quarantine.release(gpu.uuid, self._health.lasting(gpu.uuid))
        notes = [f"GPU {gpu.index} was not quarantined" for gpu in gpus if gpu not in held]
        notes += [
            f"{gpu.uuid} is not there any more, and is forgotten" for gpu in held if gpu.uuid not in shown
        ]
        if not held:
            return self._result(gpus, {}, notes)
        self._state.commit()
        return self._result(gpus, await self._moves.come_back(), notes)

    def _named(self, names: list[str]) -> list[GpuView]:
        """The GPUs by index, UUID, or the beginning of one UUID.

        :raises NotFound: one of them is not there.
        """
        views = self._gpus()
        found: dict[str, GpuView] = {}
        for name in names:
            hits = [gpu for gpu in views if name in {str(gpu.index), gpu.uuid}]
            hits = hits or [gpu for gpu in views if not name.isdigit() and name and gpu.uuid.startswith(name)]
            if len(hits) > 1:
                raise Conflict(f"{name!r} names {len(hits)} GPUs", "give an index, or more of the UUID")
            if not hits:
                known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in views) or "none"
                raise NotFound(f"no GPU is called {name!r}", f"GPUs: {known}")
            found[hits[0].uuid] = hits[0]
        if not found:
            raise Invalid("no GPU is named", "give indexes or UUIDs, as gpuserve gpus shows them")
        return list(found.values())

    def _result(self, gpus: Sequence[GpuView], told: dict[str, str], notes: list[str]) -> GpusResult:
        uuids = {gpu.uuid for gpu in gpus}
        shown = [gpu for gpu in self._gpus() if gpu.uuid in uuids]
        return GpusResult(generation=self._state.generation, gpus=shown, replicas=told, notes=notes)
