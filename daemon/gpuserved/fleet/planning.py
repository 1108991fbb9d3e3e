"""`plan` through the daemon: placement on what the host has now, and the command lines that would run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuserved.api.errors import Refused
from gpuserved.api.types import Plan, PlanRequest, PlanWarning, Refusal
from gpuserved.core.placement import Gpu
from gpuserved.fleet import apply as applying
from gpuserved.fleet.desired import Wanted, arrange
from gpuserved.fleet.plan_view import placement_view
from gpuserved.telemetry.file import parse

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


def inventory_of(document: dict[str, Any]) -> list[Gpu]:
    """The GPUs of an `--inventory` document.

    :raises Invalid: it is no inventory.
    """
    infos, samples = parse(document, "inventory")
    used = {sample.uuid: sample.memory_used_bytes for sample in samples}
    return [
        Gpu(i.index, i.uuid, i.name, i.memory_total_bytes, used.get(i.uuid), i.nvlink, i.numa_node)
        for i in infos
    ]


async def plan(fleet: Fleet, request: PlanRequest) -> Plan:
    """Place one profile beside what runs; nothing is changed.

    :raises Invalid: the profile or the inventory is wrong.
    """
    profile = applying.read(fleet, request.name, request.text, request.source or request.name)
    wanted = Wanted(request.text, request.source or request.name, profile)
    try:
        if request.inventory is not None:
            arranged = arrange({request.name: wanted}, inventory_of(request.inventory), {})
        else:
            arranged = await applying.arranged_for(fleet, {**fleet.wanted, request.name: wanted})
    except Refused as error:
        code = str((error.detail or {}).get("code", "does_not_fit"))
        return Plan(fits=False, refusal=Refusal(code=code, message=error.message, hint=error.hint or ""))
    engine = fleet.engine(profile)
    engine_warnings = [PlanWarning(code="engine", message=text) for text in engine.check(profile)]
    mine = [each for each in arranged.assignments if each.profile.name == request.name]
    placements = [placement_view(each, engine, Path(fleet.roots.cache)) for each in mine]
    return Plan(fits=True, placements=placements, warnings=[*arranged.warnings, *engine_warnings])
