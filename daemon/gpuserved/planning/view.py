"""A plan as it is shown: memory card, reasons, and the command line of each replica."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from gpuserved.api.plan import LeverView, Placement, Plan, Refusal
from gpuserved.api.types import PlanWarning
from gpuserved.core.assignment import Assignment
from gpuserved.core.placement import Lever, NoFit, Placed, Placements
from gpuserved.engines.base import Engine, Launch, LaunchContext
from gpuserved.models.sampling import Sampling

EXAMPLE_PORT = 0
_SHOWN_ENVIRONMENT = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
"""What placement decides; the rest of the environment may hold secrets and is nobody's concern here."""


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


def placement_view(assignment: Assignment, placed: Placed, made: Launch | None) -> Placement:
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


def levers_view(levers: Sequence[Lever]) -> list[LeverView]:
    """For the wire."""
    return [
        LeverView(
            change=each.change,
            kv_cache_tokens=each.kv_cache_tokens,
            max_model_len=each.max_model_len,
            fits=each.fits,
        )
        for each in levers
    ]


def refusal_view(answer: NoFit) -> Plan:
    """A plan that does not fit."""
    return Plan(
        fits=False,
        refusal=Refusal(code=answer.code, message=answer.message, hint=answer.hint),
        levers=levers_view(answer.levers),
    )


def plan_view(
    placements: Placements,
    views: list[Placement],
    warnings: Sequence[PlanWarning],
    said: Sequence[str],
    sampling: Sampling,
) -> Plan:
    """A plan that fits.

    :param said: the engine's own warnings.
    """
    return Plan(
        fits=True,
        placements=views,
        warnings=[*warnings, *(PlanWarning(code="engine", message=text) for text in said)],
        why=list(placements.why),
        levers=levers_view(placements.levers),
        sampling=dict(sampling.defaults),
        answer_cap_tokens=sampling.cap_tokens,
    )
