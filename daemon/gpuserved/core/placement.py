"""Which GPUs each replica gets, for a fixed number of replicas and a fixed tensor-parallel size.

Pure and deterministic: the same profile, inventory and leases give the same placement, in any order they are listed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpuserved.core.profile import EngineName, Profile

SIM_PREFIX = "SIM-"
"""The UUIDs of simulated GPUs begin so; only the look-alike engine is placed on them."""
SIM_DEFAULT_GIB = 80.0
"""Memory of one simulated GPU: an H100's."""
_LENGTH_MATTERS = frozenset({EngineName.VLLM, EngineName.SIM})


@dataclass(frozen=True)
class Gpu:
    """One GPU of the inventory. Bytes; None where nobody knows."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    nvlink: tuple[int, ...] = ()
    """Indexes of the GPUs it has a direct link to."""
    numa_node: int | None = None


@dataclass(frozen=True)
class Lease:
    """A GPU that is taken."""

    uuid: str
    replica: str
    """Who holds it."""


@dataclass(frozen=True)
class Placed:
    """Where one replica goes; no GPUs: on the CPU."""

    replica: str
    gpus: tuple[Gpu, ...]
    tensor_parallel_size: int


@dataclass(frozen=True)
class Warned:
    """Something the operator should know."""

    code: str
    message: str


@dataclass(frozen=True)
class NoFit:
    """Why there is no placement, and the smallest change that would make one."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Placements:
    """Where every replica of a profile goes."""

    replicas: tuple[Placed, ...]
    warnings: tuple[Warned, ...] = ()


def simulated(profile: Profile) -> list[Gpu]:
    """The GPUs that `[sim] gpus = N, gpu_memory_gib = M` adds to the inventory."""
    count, gib = profile.flags.get("gpus", 0), profile.flags.get("gpu_memory_gib", SIM_DEFAULT_GIB)
    if profile.engine is not EngineName.SIM or type(count) is not int or not isinstance(gib, (int, float)):
        return []
    total = int(gib * 1024**3)
    return [Gpu(n, f"{SIM_PREFIX}{n}", "Simulated GPU", total, 0) for n in range(count)]


def with_simulated(inventory: Iterable[Gpu], profiles: Iterable[Profile]) -> list[Gpu]:
    """The inventory with the simulated GPUs of these profiles; their indexes follow those of the real ones."""
    found = list(inventory)
    known = {gpu.uuid for gpu in found}
    first = max((gpu.index for gpu in found if not gpu.uuid.startswith(SIM_PREFIX)), default=-1) + 1
    for gpu in (gpu for profile in profiles for gpu in simulated(profile)):
        if gpu.uuid not in known:
            known.add(gpu.uuid)
            found.append(
                Gpu(first + gpu.index, gpu.uuid, gpu.name, gpu.memory_total_bytes, gpu.memory_used_bytes)
            )
    return sorted(found, key=lambda gpu: gpu.index)


def place(
    profile: Profile,
    inventory: Iterable[Gpu],
    leases: Iterable[Lease] = (),
    *,
    keep: Mapping[str, Sequence[str]] | None = None,
) -> Placements | NoFit:
    """Place all replicas of a profile.

    :param leases: what others hold; the profile's own replicas are not among them.
    :param keep: GPU UUIDs that replicas of this profile hold now; one that can stay there does.
    """
    allowed = _allowed(profile, sorted(inventory, key=lambda gpu: gpu.index))
    if isinstance(allowed, NoFit):
        return allowed
    warnings = _warnings(profile)
    size = profile.gpus_per_replica
    if not allowed:
        count = 1 if profile.replicas is None else profile.replicas
        return Placements(tuple(Placed(f"{profile.name}-{n}", (), size) for n in range(count)), warnings)
    held: dict[str, str] = {lease.uuid: lease.replica for lease in leases}
    free = [gpu for gpu in allowed if gpu.uuid not in held]
    count = _count(profile, len(allowed), len(free))
    if count * size > len(allowed):
        return _does_not_fit(profile, count, size, len(allowed))
    if count * size > len(free):
        return _overlap(
            profile, count, size, free, [(gpu, held[gpu.uuid]) for gpu in allowed if gpu.uuid in held]
        )
    return Placements(_assign(profile.name, count, size, free, keep or {}), warnings)


def _allowed(profile: Profile, inventory: list[Gpu]) -> list[Gpu] | NoFit:
    """The GPUs this profile may use; an empty list: it runs on the CPU."""
    own = profile.engine is EngineName.SIM
    there = [gpu for gpu in inventory if gpu.uuid.startswith(SIM_PREFIX) == own]
    if profile.gpus is None:
        return (
            [] if profile.engine is EngineName.LLAMACPP else there
        )  # the embedded engine computes on the CPU
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


def _count(profile: Profile, allowed: int, free: int) -> int:
    """How many replicas are asked for. `auto` leaves alone what others hold, unless the profile names its GPUs."""
    if profile.replicas is not None:
        return profile.replicas
    size = profile.gpus_per_replica
    usable = free if profile.gpus is None else allowed
    return max(1, usable // size)


def _does_not_fit(profile: Profile, count: int, size: int, there: int) -> NoFit:
    plural = "s" if there != 1 else ""
    if there >= size:
        hint = f"replicas = {there // size}" + (
            f", or tensor_parallel_size = {there // count}" if there >= count else ""
        )
    else:
        hint = f"tensor_parallel_size = {there}" + ("" if count == 1 else " and replicas = 1")
    return NoFit(
        "does_not_fit",
        f"{profile.name}: {count} x {size} GPUs are asked for (replicas x tensor_parallel_size), "
        f"and this profile has {there} GPU{plural} to use",
        hint,
    )


def _overlap(profile: Profile, count: int, size: int, free: list[Gpu], held: list[tuple[Gpu, str]]) -> NoFit:
    owners = ", ".join(f"GPU {gpu.index} by {replica}" for gpu, replica in held)
    fits = len(free) // size
    hint = f"replicas = {fits}, or " if fits else ""
    return NoFit(
        "gpu_overlap",
        f"{profile.name}: {count * size} GPUs are needed and {len(free)} are free; held: {owners}",
        f"{hint}stop what holds them, or name other GPUs in gpus",
    )


def _assign(
    name: str, count: int, size: int, free: list[Gpu], keep: Mapping[str, Sequence[str]]
) -> tuple[Placed, ...]:
    left = {gpu.uuid: gpu for gpu in free}
    chosen: dict[str, tuple[Gpu, ...]] = {}
    names = [f"{name}-{n}" for n in range(count)]
    for replica in names:
        wanted = list(dict.fromkeys(keep.get(replica, ())))
        if len(wanted) == size and all(uuid in left for uuid in wanted):
            chosen[replica] = tuple(left.pop(uuid) for uuid in wanted)
    for replica in names:
        if replica not in chosen:
            group = _group(list(left.values()), size)
            chosen[replica] = group
            for gpu in group:
                del left[gpu.uuid]
    return tuple(Placed(replica, chosen[replica], size) for replica in names)


def _group(free: list[Gpu], size: int) -> tuple[Gpu, ...]:
    """The first free GPU and the ones nearest to it: linked, then of the same NUMA node, then by index."""
    first = free[0]
    others = sorted(
        free[1:],
        key=lambda gpu: (gpu.index not in first.nvlink, gpu.numa_node != first.numa_node, gpu.index),
    )
    return tuple(sorted((first, *others[: size - 1]), key=lambda gpu: gpu.index))


def _warnings(profile: Profile) -> tuple[Warned, ...]:
    if profile.max_model_len is not None or profile.engine not in _LENGTH_MATTERS:
        return ()
    return (
        Warned(
            "max_model_len_unset",
            f"{profile.name}: max_model_len is not set; the engine then plans for the model's longest context, "
            "which can leave no room for more than one request, or not start at all. Set what your requests need",
        ),
    )
