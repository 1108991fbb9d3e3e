"""`plan` through the daemon: placement on what the host has now, and the command lines that would run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuserved.api.errors import Invalid, Refused
from gpuserved.api.plan import LeverView, Plan, PlanRequest, Refusal
from gpuserved.config.document import placed
from gpuserved.core.placement import Gpu
from gpuserved.fleet import apply as applying
from gpuserved.models.sampling import Sampling
from gpuserved.planning.arrange import Arranged, Wanted, arrange
from gpuserved.planning.inventory import gpu_of
from gpuserved.planning.view import command_of, placement_view, plan_view
from gpuserved.telemetry.file import parse

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


def inventory_of(document: dict[str, Any]) -> list[Gpu]:
    """The GPUs of an `--inventory` document.

    :raises Invalid: it is no inventory.
    """
    infos, samples = parse(document, "inventory")
    by_uuid = {sample.uuid: sample for sample in samples}
    return [gpu_of(info, by_uuid.get(info.uuid), {}) for info in infos]


async def plan(fleet: Fleet, request: PlanRequest) -> Plan:
    """Place one profile beside what runs; nothing is changed. It is planned anew, whatever was decided before.

    :raises Invalid: the profile or the inventory is wrong.
    """
    profile = applying.read(fleet, request.name, request.text, request.source or request.name)
    wanted = Wanted(request.text, request.source or request.name, profile)
    try:
        if request.inventory is not None:
            known = await asyncio.to_thread(fleet.knowledge.of, profile)
            arranged = arrange(
                {request.name: wanted}, inventory_of(request.inventory), {}, {request.name: known}
            )
        else:
            arranged = await applying.arranged_for(
                fleet, {**fleet.wanted, request.name: wanted}, (request.name,)
            )
    except Refused as error:
        return _refused(error)
    sampling = await asyncio.to_thread(fleet.knowledge.sampling, profile)
    return _shown(fleet, arranged, request.name, wanted, sampling)


def _refused(error: Refused) -> Plan:
    detail = error.detail or {}
    return Plan(
        fits=False,
        refusal=Refusal(
            code=str(detail.get("code", "does_not_fit")), message=error.message, hint=error.hint or ""
        ),
        levers=[LeverView(**each) for each in detail.get("levers", [])],
    )


def _shown(fleet: Fleet, arranged: Arranged, name: str, wanted: Wanted, sampling: Sampling) -> Plan:
    engine, cache_dir = fleet.engine(wanted.profile), Path(fleet.roots.cache)
    try:
        said = engine.check(wanted.profile)
    except Invalid as error:
        raise placed(error, wanted.text, wanted.source) from None
    mine = {each.replica: each for each in arranged.assignments if each.profile.name == name}
    placements = arranged.placements[name]
    views = [
        placement_view(mine[one.replica], one, command_of(mine[one.replica], engine, cache_dir))
        for one in placements.replicas
    ]
    return plan_view(placements, views, arranged.warnings, said, sampling)
