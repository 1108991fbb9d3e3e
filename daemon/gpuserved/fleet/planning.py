"""`plan` through the daemon: placement on what the host has now, and the command lines that would run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpuserved.api.errors import Invalid, Refused
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.config.document import placed
from gpuserved.fleet import apply as applying
from gpuserved.planning.arrange import Arranged, Wanted, arrange
from gpuserved.planning.inventory import free_gpus
from gpuserved.planning.plan import shown
from gpuserved.telemetry.file import parse

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


async def plan(fleet: Fleet, request: PlanRequest) -> Plan:
    """Place one profile beside what runs; nothing is changed. It is planned anew, whatever was decided before.

    :raises Invalid: the profile or the inventory is wrong.
    """
    profile = applying.read(fleet, request.name, request.text, request.source or request.name)
    wanted = Wanted(request.text, request.source or request.name, profile)
    found: Arranged | Refused
    try:
        if request.inventory is not None:
            inputs = await asyncio.to_thread(fleet.inputs.of, profile, fleet.hf_token)
            gpus = free_gpus(*parse(request.inventory, "inventory"))
            found = arrange({request.name: wanted}, gpus, {}, {request.name: inputs})
        else:
            found = await applying.arranged_for(
                fleet, {**fleet.wanted, request.name: wanted}, (request.name,)
            )
    except Refused as error:
        found = error
    sampling = await asyncio.to_thread(fleet.inputs.sampling, profile)
    try:
        return shown(found, profile, fleet.engine(profile), sampling, fleet.roots.cache)
    except Invalid as error:
        raise placed(error, wanted.text, wanted.source) from None
