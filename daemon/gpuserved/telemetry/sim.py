"""GPUs that exist on paper, for replicas of the `sim` engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpuserved.core.placement import SIM_DEFAULT_GIB, SIM_PREFIX, GpuInfo, with_simulated
from gpuserved.core.profile import Profile
from gpuserved.telemetry.provider import GpuProcess, GpuSample

GIB = 1024**3
UTILIZATION = 0.92
"""vLLM's default share of a card."""
BASE_USED_BYTES = 600 * 1024**2
"""What an idle card shows as used: driver and context."""


@dataclass(frozen=True)
class Claim:
    """Memory that a live process of the sim engine says it holds on one GPU."""

    uuid: str
    pid: int
    memory_bytes: int


class SimProvider:
    """The simulated GPUs, all linked to each other. Whoever starts the sim replicas says what they claim."""

    name = "sim"
    reason: str | None = None

    def __init__(self, gpus: Sequence[GpuInfo]) -> None:
        self._infos = [
            replace(gpu, nvlink=tuple(other.index for other in gpus if other is not gpu)) for gpu in gpus
        ]
        self._claims: Mapping[str, Sequence[Claim]] = {}

    def claim(self, claims: Sequence[Claim]) -> None:
        """Replace all claims by these."""
        by_gpu: dict[str, list[Claim]] = {}
        for each in claims:
            by_gpu.setdefault(each.uuid, []).append(each)
        self._claims = by_gpu

    def inventory(self) -> list[GpuInfo]:
        return list(self._infos)

    def sample(self) -> list[GpuSample]:
        """A simulated card has no sensors."""
        return [self._sample(info) for info in self._infos]

    def _sample(self, info: GpuInfo) -> GpuSample:
        claims = self._claims.get(info.uuid, ())
        return GpuSample(
            index=info.index,
            uuid=info.uuid,
            memory_used_bytes=BASE_USED_BYTES + sum(claim.memory_bytes for claim in claims),
            memory_total_bytes=info.memory_total_bytes,
            processes=tuple(GpuProcess(claim.pid, claim.memory_bytes) for claim in claims),
        )


def simulated_by(profiles: Sequence[Profile]) -> SimProvider | None:
    """The GPUs that these profiles add to the inventory, as the planner places on them; None: they add none."""
    gpus = with_simulated([], profiles)
    return SimProvider(gpus) if gpus else None


def claims_of(profile: Profile, pid: int, gpu_uuids: Sequence[str]) -> list[Claim]:
    """What a replica's process holds on the simulated GPUs among these: its share of each."""
    share, gib = (
        float(value) if isinstance(value := profile.flags.get(name), (int, float)) else default
        for name, default in (("gpu_memory_utilization", UTILIZATION), ("gpu_memory_gib", SIM_DEFAULT_GIB))
    )
    held = int(gib * share * GIB)
    return [Claim(uuid, pid, held) for uuid in gpu_uuids if uuid.startswith(SIM_PREFIX)]
