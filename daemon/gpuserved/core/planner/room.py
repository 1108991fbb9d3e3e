"""Which GPUs a profile may use, and how much of each is free: leases, foreign memory, what is blocked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuserved.core.placement import Gpu, Lease, NoFit
from gpuserved.core.planner.utilization import (
    ANYTHING,
    Runs,
    asked_utilization,
    late_bytes,
    utilization_cap,
    utilization_limit,
    wanted_utilization,
)
from gpuserved.core.profile import Profile, RunsOn

FRACTION_ERROR = 1e-9
MIB = 1024**2


@dataclass(frozen=True)
class Room:
    """The GPUs of one profile's plan."""

    allowed: tuple[Gpu, ...]
    free: tuple[Gpu, ...]
    taken: tuple[tuple[Gpu, str], ...]
    """The others, each with who or what is in the way."""


def allowed(profile: Profile, inventory: Iterable[Gpu]) -> list[Gpu] | NoFit:
    """The GPUs this profile may use, by index; an empty list: it runs on the CPU."""
    planning = profile.engine.planning
    own = planning.runs_on is RunsOn.SIMULATED
    there = sorted((g for g in inventory if g.simulated == own), key=lambda gpu: (gpu.index, gpu.uuid))
    if profile.gpus is None:
        return [] if planning.runs_on is RunsOn.NAMED else there
    by_name = {name: gpu for gpu in there for name in (str(gpu.index), gpu.uuid)}
    missing = [name for name in profile.gpus if name not in by_name]
    if missing:
        known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in there) or "none"
        return NoFit(
            "does_not_fit",
            f"{profile.name}: gpus names {', '.join(missing)}, which this host does not have",
            f'GPUs here: {known}; correct gpus, or use gpus = "all"',
        )
    return sorted({by_name[name] for name in profile.gpus}, key=lambda gpu: gpu.index)


def room(profile: Profile, gpus: list[Gpu], leases: Iterable[Lease], runs: Runs | None = ANYTHING) -> Room:
    """What is free of `gpus` for replicas of this profile.

    :param runs: None: their memory is not weighed.
    """
    held: dict[str, list[Lease]] = {}
    for lease in leases:
        held.setdefault(lease.uuid, []).append(lease)
    free: list[Gpu] = []
    taken: list[tuple[Gpu, str]] = []
    for gpu in gpus:
        obstacle = _obstacle(profile, gpu, held.get(gpu.uuid, []), runs)
        if obstacle is None:
            free.append(gpu)
        else:
            taken.append((gpu, obstacle))
    return Room(tuple(gpus), tuple(free), tuple(taken))


def _obstacle(profile: Profile, gpu: Gpu, held: list[Lease], runs: Runs | None) -> str | None:
    if gpu.blocked is not None:
        return gpu.blocked
    share = profile.gpu_share or 1.0
    if sum(lease.fraction for lease in held) + share > 1.0 + FRACTION_ERROR:
        owners = ", ".join(sorted({lease.replica for lease in held}))
        left = 1.0 - sum(lease.fraction for lease in held)
        return f"by {owners}" if left < 0.01 else f"by {owners}, {left:.2f} of it is free"
    return None if runs is None else _short_of_memory(profile, gpu, runs)


def _short_of_memory(profile: Profile, gpu: Gpu, runs: Runs) -> str | None:
    size = profile.gpus_per_replica
    wanted = wanted_utilization(profile, gpu, size, runs)
    if wanted is None:
        return None
    if wanted > (limit := utilization_limit(profile, gpu, size, runs)) + FRACTION_ERROR:
        return f"by its own CUDA context: gpu_memory_utilization can be {limit:g} there at most"
    late = 0 if asked_utilization(profile) is not None else late_bytes(profile, gpu, runs)
    if wanted > utilization_cap(gpu, size, late) + FRACTION_ERROR:
        return "by " + foreigners(gpu)
    return None


def foreigners(gpu: Gpu) -> str:
    """Who holds memory that is not ours: PID, user, MiB."""
    named = [
        f"PID {one.pid}"
        + (f" of {one.user}" if one.user else "")
        + (f" ({one.memory_bytes // MIB} MiB)" if one.memory_bytes is not None else "")
        for one in gpu.foreign
    ]
    return ", ".join(named) or f"processes that are not ours ({(gpu.memory_used_bytes or 0) // MIB} MiB)"
