"""A profile's plan without a daemon: placements with the command line of each replica."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.types import Placement, Plan, PlanWarning, Refusal
from gpuserved.core.placement import Gpu, NoFit, place, with_simulated
from gpuserved.core.profile import Profile
from gpuserved.engines import registry
from gpuserved.fleet.plan_view import placement_view
from gpuserved.supervisor.surroundings import Assignment


def plan_profile(
    profile: Profile, inventory: Iterable[Gpu], *, cache_dir: Path, on_paper: bool = False
) -> Plan:
    """Place a profile on free GPUs and fill in what each replica would be started with.

    :param inventory: the host's GPUs, or those of a file; what `[sim] gpus` adds is added here.
    :param on_paper: the inventory is another host's: what the engine here says of the profile is a warning, not an error.
    :raises Invalid: the profile cannot start on this host (bad flag, missing model, engine not installed).
    """
    answer = place(profile, with_simulated(inventory, [profile]))
    if isinstance(answer, NoFit):
        return Plan(fits=False, refusal=Refusal(code=answer.code, message=answer.message, hint=answer.hint))
    assignments = [
        Assignment(
            one.replica, profile, tuple(gpu.index for gpu in one.gpus), tuple(gpu.uuid for gpu in one.gpus)
        )
        for one in answer.replicas
    ]
    engine = registry.get(profile.engine, cache_dir)
    try:
        said = engine.check(profile)
        placements = [placement_view(one, engine, cache_dir) for one in assignments]
    except Invalid as error:
        if not on_paper:
            raise
        said = [f"no command line can be shown: {error.message}"]
        placements = [_without_command(one) for one in assignments]
    warnings = [PlanWarning(code=one.code, message=one.message) for one in answer.warnings]
    warnings += [PlanWarning(code="engine", message=message) for message in said]
    return Plan(fits=True, placements=placements, warnings=warnings)


def _without_command(assignment: Assignment) -> Placement:
    return Placement(
        replica=assignment.replica,
        gpus=list(assignment.gpu_indexes),
        tensor_parallel_size=assignment.profile.gpus_per_replica,
        max_model_len=assignment.profile.max_model_len,
    )
