"""A profile's plan without a daemon: placements with the memory card and command line of each replica."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.plan import Plan
from gpuserved.api.types import PlanWarning
from gpuserved.core.assignment import Assignment
from gpuserved.core.placement import Gpu, Lease, NoFit, with_simulated
from gpuserved.core.planner.decide import place
from gpuserved.core.profile import Profile
from gpuserved.engines.registry import Engines
from gpuserved.planning.knowledge import Knowledge
from gpuserved.planning.view import command_of, placement_view, plan_view, refusal_view


def plan_profile(
    profile: Profile,
    inventory: Iterable[Gpu],
    *,
    cache_dir: Path,
    state_dir: Path,
    on_paper: bool = False,
    leases: Iterable[Lease] = (),
) -> Plan:
    """Place a profile on free GPUs and fill in what each replica would be started with.

    :param inventory: the host's GPUs, or those of a file; what `[sim] gpus` adds is added here.
    :param leases: what daemons of this host hold.
    :param on_paper: the inventory is another host's: what the engine here says of the profile is a warning, not an error.
    :raises Invalid: the profile cannot start on this host (bad flag, missing model, engine not installed).
    """
    knowledge = Knowledge(state_dir, cache_dir)
    known = knowledge.of(profile)
    gpus = with_simulated(inventory, [profile])
    answer = place(profile, gpus, leases, facts=known.facts, lookup=known.lookup, version=known.version)
    if isinstance(answer, NoFit):
        return refusal_view(answer)
    assignments = [
        Assignment(
            one.replica,
            one.resolved(profile),
            tuple(gpu.index for gpu in one.gpus),
            tuple(gpu.uuid for gpu in one.gpus),
        )
        for one in answer.replicas
    ]
    engine = Engines(cache_dir).get(profile)
    try:
        said = engine.check(profile)
        made = [command_of(one, engine, cache_dir) for one in assignments]
    except Invalid as error:
        if not on_paper:
            raise
        said = [f"no command line can be shown: {error.message}"]
        made = []
    views = [
        placement_view(one, placed, made[n] if made else None)
        for n, (one, placed) in enumerate(zip(assignments, answer.replicas, strict=True))
    ]
    warnings = [PlanWarning(code=one.code, message=one.message) for one in answer.warnings]
    return plan_view(answer, views, warnings, said, knowledge.sampling(profile))
