"""What an operator asks of single GPUs: quarantine and release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuserved.api.errors import Conflict, Invalid, NotFound, Refused
from gpuserved.api.gpus import GpusRequest, GpusResult
from gpuserved.api.types import GpuView
from gpuserved.fleet import evacuate
from gpuserved.fleet.quarantine import NO_REASON, OPERATOR

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

REASON_MAX = 200


async def quarantine(fleet: Fleet, request: GpusRequest) -> GpusResult:
    """Set GPUs aside; their replicas are drained and move to others, or wait.

    :raises NotFound: or Invalid: nothing was touched.
    """
    gpus = _named(fleet, request.gpus)
    reason = (request.reason or "").strip() or None
    if reason is not None and (len(reason) > REASON_MAX or not reason.isprintable()):
        raise Invalid("the reason is not one line of text", f"use at most {REASON_MAX} printable characters")
    fresh = [gpu for gpu in gpus if gpu.uuid not in fleet.quarantine]
    for gpu in gpus:
        if gpu in fresh or reason is not None:
            fleet.quarantine.set_aside(gpu, OPERATOR, reason or NO_REASON)
    notes = [_already(fleet, gpu) for gpu in gpus if gpu not in fresh]
    if fresh:
        fleet.generation += 1
    told = await evacuate.evacuate(fleet, {gpu.uuid for gpu in fresh}) if fresh else {}
    return _result(fleet, gpus, told, notes)


async def release(fleet: Fleet, request: GpusRequest) -> GpusResult:
    """Let GPUs be used again, whatever they were set aside for; what waited for them starts.

    :raises Refused: one of them is lost: nothing can run there.
    """
    gpus = _named(fleet, request.gpus)
    shown = {gpu.uuid for gpu in fleet.gpus.views()}
    for gpu in gpus:
        if gpu.state == "LOST" and gpu.uuid in shown:
            raise Refused(
                f"GPU {gpu.index} is LOST: it answers no query, and nothing can run there",
                f"sudo nvidia-smi --gpu-reset -i {gpu.index}, or restart the host; then release it",
            )
    held = [gpu for gpu in gpus if gpu.uuid in fleet.quarantine]
    for gpu in held:
        fleet.quarantine.release(gpu.uuid, fleet.gpuwatch.standing(gpu.uuid))
    notes = [f"GPU {gpu.index} was not quarantined" for gpu in gpus if gpu not in held]
    notes += [f"{gpu.uuid} is not there any more, and is forgotten" for gpu in held if gpu.uuid not in shown]
    if held:
        fleet.generation += 1
    told = await evacuate.come_back(fleet) if held else {}
    return _result(fleet, gpus, told, notes)


def _named(fleet: Fleet, names: list[str]) -> list[GpuView]:
    """The GPUs by index, UUID, or the beginning of one UUID.

    :raises NotFound: one of them is not there.
    """
    views = fleet.gpu_list()
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


def _already(fleet: Fleet, gpu: GpuView) -> str:
    return f"GPU {gpu.index} was quarantined already; it is for: {fleet.quarantine.of[gpu.uuid].reason}"


def _result(fleet: Fleet, gpus: list[GpuView], told: dict[str, str], notes: list[str]) -> GpusResult:
    uuids = {gpu.uuid for gpu in gpus}
    shown = [gpu for gpu in fleet.gpu_list() if gpu.uuid in uuids]
    return GpusResult(generation=fleet.generation, gpus=shown, replicas=told, notes=notes)
