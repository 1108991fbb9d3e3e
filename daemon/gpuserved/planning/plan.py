"""The plan of one profile, as it is shown: placements with their memory cards, reasons, and the command line of each replica."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.api.errors import Invalid, Refused
from gpuserved.api.plan import LeverView, Placement, Plan, Refusal
from gpuserved.api.types import PlanWarning
from gpuserved.core.assignment import Assignment
from gpuserved.core.placement import Gpu, Lease, Placed
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine, Launch, LaunchContext, Sampling
from gpuserved.engines.registry import Engines
from gpuserved.planning.arrange import Arranged, Wanted, arrange
from gpuserved.planning.inputs import InputReader

EXAMPLE_PORT = 0
_SHOWN_ENVIRONMENT = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
"""What placement decides; the rest of the environment may hold secrets and is nobody's concern here."""


def plan_profile(
    profile: Profile,
    inventory: Iterable[Gpu],
    *,
    cache_dir: Path,
    state_dir: Path,
    on_paper: bool = False,
    leases: Iterable[Lease] = (),
) -> Plan:
    """Plan a profile without a daemon, on GPUs of which none is a replica's.

    :param inventory: the host's GPUs, or those of a file; what `[sim] gpus` adds is added here.
    :param leases: what daemons of this host hold.
    :param on_paper: the inventory is another host's.
    :raises Invalid: see `shown`.
    """
    engines = Engines(cache_dir)
    inputs = InputReader(state_dir, cache_dir, engines)
    found: Arranged | Refused
    try:
        found = arrange(
            {profile.name: Wanted("", "", profile)}, list(inventory), {}, {profile.name: inputs.of(profile)}, list(leases)
        )  # fmt: skip
    except Refused as error:
        found = error
    return shown(found, profile, engines.get(profile), inputs.sampling(profile), cache_dir, on_paper=on_paper)


def shown(
    found: Arranged | Refused,
    profile: Profile,
    engine: Engine,
    sampling: Sampling,
    cache_dir: Path,
    *,
    on_paper: bool = False,
) -> Plan:
    """What the planner decided of one profile, with what its engine says of it and what each replica would be started with.

    :param sampling: what a request gets that says nothing of it.
    :param on_paper: the inventory is another host's: what the engine here refuses is a warning.
    :raises Invalid: the profile cannot start on this host (bad flag, missing model, engine not installed).
    """
    if isinstance(found, Refused):
        return _refusal(found)
    placements = found.placements[profile.name]
    assignments = {each.replica: each for each in found.assignments}
    mine = [assignments[one.replica] for one in placements.replicas]
    made: list[Launch | None]
    try:
        said = engine.check(profile)
        made = [command_of(one, engine, cache_dir) for one in mine]
    except Invalid as error:
        if not on_paper:
            raise
        said, made = [f"no command line can be shown: {error.message}"], [None] * len(mine)
    return Plan(
        fits=True,
        placements=[_placement(*each) for each in zip(mine, placements.replicas, made, strict=True)],
        warnings=[*found.warnings, *(PlanWarning(code="engine", message=text) for text in said)],
        why=list(placements.why),
        levers=[LeverView(**vars(each)) for each in placements.levers],
        sampling=dict(sampling.defaults),
        answer_cap_tokens=sampling.cap_tokens,
    )


def _refusal(error: Refused) -> Plan:
    detail: dict[str, Any] = error.detail or {}
    code = str(detail.get("code", "does_not_fit"))
    return Plan(
        fits=False,
        refusal=Refusal(code=code, message=error.message, hint=error.hint or ""),
        levers=[LeverView(**each) for each in detail.get("levers", [])],
    )


def command_of(assignment: Assignment, engine: Engine, cache_dir: Path) -> Launch:
    """What a replica would be started with.

    :raises Invalid: its engine is not installed, or refuses the profile.
    """
    profile = assignment.profile
    return engine.launch(
        LaunchContext(
            profile=profile,
            replica=assignment.replica,
            generation=0,
            nonce="0" * 12,
            run_dir=Path("RUN_DIR"),
            cache_dir=cache_dir,
            gpu_indexes=assignment.gpu_indexes,
            gpu_uuids=assignment.gpu_uuids,
            port=EXAMPLE_PORT if engine.wants_port(profile) else None,
        )
    )


def _placement(assignment: Assignment, placed: Placed, made: Launch | None) -> Placement:
    """One replica's placement. Memory figures are None where the planner does not know the model."""
    profile, card = assignment.profile, placed.card
    share = profile.flags.get("gpu_memory_utilization")
    view = Placement(
        replica=assignment.replica,
        gpus=list(assignment.gpu_indexes),
        tensor_parallel_size=profile.tensor_parallel_size or 1,
        data_parallel_size=profile.data_parallel_size or 1,
        max_model_len=profile.max_model_len,
        gpu_memory_utilization=float(share) if isinstance(share, (int, float)) else None,
        command=list(made.argv) if made else [],
        environment={name: made.env[name] for name in _SHOWN_ENVIRONMENT if name in made.env} if made else {},
    )
    if card is None:
        return view
    return msgspec.structs.replace(
        view,
        weights_bytes=card.weights_bytes,
        kv_cache_bytes=card.kv_cache_bytes,
        kv_cache_tokens=card.kv_cache_tokens * placed.data_parallel_size,
        max_concurrency=None if placed.concurrency is None else round(placed.concurrency, 2),
        activation_bytes=card.activation_bytes,
        cuda_graph_bytes=card.graph_bytes,
        non_torch_bytes=card.non_torch_bytes,
        headroom_bytes=card.headroom_bytes,
        memory_source=card.source,
        memory_release=card.release,
    )
