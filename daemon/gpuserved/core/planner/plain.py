"""Placement by numbers alone, for engines whose memory is not planned and models that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuserved.core.placement import Gpu, NoFit, Placed, Placements, Warned
from gpuserved.core.planner import explain, topology
from gpuserved.core.planner.model import Unknown
from gpuserved.core.planner.room import Room
from gpuserved.core.planner.utilization import chosen_utilization
from gpuserved.core.profile import Profile


def place(
    profile: Profile, space: Room, keep: Mapping[str, Sequence[str]], unknown: Unknown | None
) -> Placements | NoFit:
    """As many replicas as are asked for, or as there are groups of GPUs."""
    warnings = _warnings(profile, unknown if space.allowed else None, no_gpu=not space.allowed)
    size = profile.gpus_per_replica
    if not space.allowed:
        count = 1 if profile.replicas is None else profile.replicas
        return Placements(
            tuple(Placed(f"{profile.name}-{n}", (), profile.tensor_parallel_size or 1) for n in range(count)),
            warnings,
        )
    there, free = len(space.allowed), len(space.free)
    count = _count(profile, size, there, free)
    if count * size > there:
        return explain.too_few(profile, count, size, there)
    blocked = sum(1 for gpu, _ in space.taken if gpu.blocked)
    fewer = count * size > free
    if fewer:
        if not blocked or count * size > free + blocked or free < size:
            return explain.overlap(profile, count * size, space)
        count = free // size  # GPUs are quarantined: serve with what is left
    fewer = fewer or (profile.replicas is None and blocked > 0)
    if fewer:
        warnings += (explain.degraded(profile, space),)
    return Placements(_assign(profile, count, size, space.free, keep, fewer=fewer), warnings)


def _count(profile: Profile, size: int, there: int, free: int) -> int:
    """How many replicas are asked for. `auto` leaves alone what others hold, unless the profile names its GPUs."""
    if profile.replicas is not None:
        return profile.replicas
    if profile.data_parallel == "internal":
        return 1
    return max(1, (free if profile.gpus is None else there) // size)


def _assign(
    profile: Profile,
    count: int,
    size: int,
    free: Sequence[Gpu],
    keep: Mapping[str, Sequence[str]],
    *,
    fewer: bool,
) -> tuple[Placed, ...]:
    """:param fewer: than there were, because GPUs are blocked."""
    names = topology.names(
        profile.name, count, topology.kept_groups(free, size, keep) if fewer else (), blocked=fewer
    )
    kept = topology.kept_groups(free, size, {name: keep[name] for name in names if name in keep})
    used = {gpu.uuid for group in kept.values() for gpu in group}
    fresh = iter(topology.groups([gpu for gpu in free if gpu.uuid not in used], size))
    chosen = {name: kept[name] if name in kept else next(fresh).gpus for name in names}
    return tuple(
        Placed(
            name, chosen[name], profile.tensor_parallel_size or 1, profile.data_parallel_size or 1,
            utilization=_utilization(profile, chosen[name]),
        )
        for name in names
    )  # fmt: skip


def _utilization(profile: Profile, gpus: Sequence[Gpu]) -> float | None:
    """Only where vLLM's default would not do: beside foreign memory, or on a share of a card."""
    if not profile.engine.planning.by_memory:
        return None
    found = [value for gpu in gpus if (value := chosen_utilization(profile, gpu, len(gpus))) is not None]
    return min(found, default=None)


def _warnings(profile: Profile, unknown: Unknown | None, *, no_gpu: bool) -> tuple[Warned, ...]:
    found: tuple[Warned, ...] = ()
    if no_gpu and profile.engine.planning.by_memory and profile.gpus is None:
        found = (
            Warned(
                "no_gpu",
                f"{profile.name}: no GPU is seen on this host, so vLLM is started for the CPU, which only its CPU build can do; "
                "gpuserve doctor says why none is seen",
            ),
        )
    if unknown is not None:
        found = (Warned(unknown.code, f"{profile.name}: {unknown.message}. {unknown.hint}"),)
    unset = profile.max_model_len is None and not profile.max_model_len_auto
    if not unset or not profile.engine.planning.length_matters:
        return found
    return (
        *found,
        Warned(
            "max_model_len_unset",
            f"{profile.name}: max_model_len is not set; the engine then plans for the model's longest context, "
            "which can leave no room for more than one request, or not start at all. Set what your requests need",
        ),
    )
