"""A placement as `plan` shows it, with the command line that would run."""

from __future__ import annotations

from pathlib import Path

from gpuserved.api.types import Placement
from gpuserved.engines.base import Engine, LaunchContext
from gpuserved.supervisor.surroundings import Assignment

EXAMPLE_PORT = 0
_SHOWN_ENVIRONMENT = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
"""What placement decides; the rest of the environment may hold secrets and is nobody's concern here."""


def placement_view(assignment: Assignment, engine: Engine, cache_dir: Path) -> Placement:
    """One replica's placement. Memory figures are None: this version does not estimate them."""
    profile = assignment.profile
    made = engine.launch(
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
    share = profile.flags.get("gpu_memory_utilization")
    return Placement(
        replica=assignment.replica,
        gpus=list(assignment.gpu_indexes),
        tensor_parallel_size=profile.gpus_per_replica,
        max_model_len=profile.max_model_len,
        gpu_memory_utilization=float(share) if isinstance(share, (int, float)) else None,
        command=list(made.argv),
        environment={name: made.env[name] for name in _SHOWN_ENVIRONMENT if name in made.env},
    )
