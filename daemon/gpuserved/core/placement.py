"""What a placement is made of: GPUs, leases, the answer. The decision itself is in `planner.decide`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from gpuserved.core.planner.memory import Card
from gpuserved.core.profile import Profile, RunsOn

SIM_PREFIX = "SIM-"
"""The UUIDs of simulated GPUs begin so; only the look-alike engine is placed on them."""
SIM_DEFAULT_GIB = 80.0
"""Memory of one simulated GPU: an H100's."""


@dataclass(frozen=True)
class Foreign:
    """A process that is not ours and holds memory on a GPU."""

    pid: int
    user: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class GpuInfo:
    """What the inventory says of a GPU: it stays the same while the GPU is there. Bytes; None where nobody knows.

    Its figures of one moment are `telemetry.provider.GpuSample`; the two together, as a client sees them, `api.types.GpuView`.
    """

    index: int
    """In PCI order, as CUDA_VISIBLE_DEVICES means it with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    uuid: str
    name: str
    memory_total_bytes: int | None = None
    nvlink: tuple[int, ...] = ()
    """Indexes of the GPUs it has a direct link to."""
    numa_node: int | None = None
    compute_capability: str | None = None
    memory_reserved_bytes: int | None = None
    """Part of the total that the driver keeps from CUDA."""

    @property
    def simulated(self) -> bool:
        """Only replicas of the look-alike engine are placed on it."""
        return self.uuid.startswith(SIM_PREFIX)


@dataclass(frozen=True)
class Gpu(GpuInfo):
    """A GPU as the planner weighs it: the inventory's fact, with what is in the way there."""

    memory_used_bytes: int | None = None
    """By others than our replicas."""
    foreign: tuple[Foreign, ...] = ()
    """Who the others are, as far as the driver tells."""
    blocked: str | None = None
    """Why nothing may be placed here: quarantined, lost."""

    @classmethod
    def of(
        cls,
        info: GpuInfo,
        *,
        memory_used_bytes: int | None = None,
        foreign: tuple[Foreign, ...] = (),
        blocked: str | None = None,
    ) -> Gpu:
        """The GPU of an inventory with what is in the way there."""
        facts: dict[str, Any] = {each.name: getattr(info, each.name) for each in fields(GpuInfo)}
        return cls(**facts, memory_used_bytes=memory_used_bytes, foreign=foreign, blocked=blocked)


@dataclass(frozen=True)
class Lease:
    """A share of a GPU that is taken."""

    uuid: str
    replica: str
    """Who holds it."""
    fraction: float = 1.0


@dataclass(frozen=True)
class Placed:
    """Where one replica goes; no GPUs: on the CPU. What is None the planner does not know, or does not decide."""

    replica: str
    gpus: tuple[Gpu, ...]
    tensor_parallel_size: int
    data_parallel_size: int = 1
    max_model_len: int | None = None
    utilization: float | None = None
    card: Card | None = None
    """Of the GPU with the least room."""
    concurrency: float | None = None
    """Requests of `max_model_len` at once."""

    def resolved(self, profile: Profile) -> Profile:
        """The profile with what the planner decided in place of what it left open."""
        flags = dict(profile.flags)
        if self.utilization is not None and "kv_cache_memory_bytes" not in flags:
            flags["gpu_memory_utilization"] = self.utilization
        return replace(
            profile,
            tensor_parallel_size=self.tensor_parallel_size,
            data_parallel_size=self.data_parallel_size,
            max_model_len=self.max_model_len or profile.max_model_len,
            flags=flags,
        )


@dataclass(frozen=True)
class Warned:
    """Something the operator should know."""

    code: str
    message: str


@dataclass(frozen=True)
class Lever:
    """A change, and what it brings."""

    change: str
    kv_cache_tokens: int
    """Of one replica, then."""
    max_model_len: int
    fits: bool


@dataclass(frozen=True)
class NoFit:
    """Why there is no placement, and the smallest change that would make one."""

    code: str
    message: str
    hint: str
    levers: tuple[Lever, ...] = ()
    card: Card | None = None
    """Of the nearest miss."""


@dataclass(frozen=True)
class Placements:
    """Where every replica of a profile goes."""

    replicas: tuple[Placed, ...]
    warnings: tuple[Warned, ...] = ()
    why: tuple[str, ...] = ()
    """The reasons of the choice, a sentence each."""
    levers: tuple[Lever, ...] = ()


def simulated(profile: Profile) -> list[Gpu]:
    """The GPUs that `[sim] gpus = N, gpu_memory_gib = M` adds to the inventory."""
    count, gib = profile.flags.get("gpus", 0), profile.flags.get("gpu_memory_gib", SIM_DEFAULT_GIB)
    if (
        profile.engine.planning.runs_on is not RunsOn.SIMULATED
        or type(count) is not int
        or not isinstance(gib, (int, float))
    ):
        return []
    total = int(gib * 1024**3)
    return [Gpu(n, f"{SIM_PREFIX}{n}", "Simulated GPU", total, memory_used_bytes=0) for n in range(count)]


def with_simulated(inventory: Iterable[Gpu], profiles: Iterable[Profile]) -> list[Gpu]:
    """The inventory with the simulated GPUs of these profiles; their indexes follow those of the real ones."""
    found = list(inventory)
    known = {gpu.uuid for gpu in found}
    first = max((gpu.index for gpu in found if not gpu.simulated), default=-1) + 1
    for gpu in (gpu for profile in profiles for gpu in simulated(profile)):
        if gpu.uuid not in known:
            known.add(gpu.uuid)
            found.append(replace(gpu, index=first + gpu.index))
    return sorted(found, key=lambda gpu: gpu.index)
