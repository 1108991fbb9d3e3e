"""GPUs that exist on paper, for replicas of the `sim` engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpuserved.telemetry.provider import GpuInfo, GpuProcess, GpuSample

BASE_USED_BYTES = 600 * 1024**2
"""What an idle card shows as used: driver and context."""


@dataclass(frozen=True)
class Claim:
    """Memory that a live process of the sim engine says it holds on one GPU."""

    uuid: str
    pid: int
    memory_bytes: int


class SimProvider:
    """See `GpuProvider`. Whoever starts the sim replicas says what they claim."""

    name = "sim"
    reason: str | None = None

    def __init__(self, count: int, memory_bytes: int, name: str = "Simulated GPU") -> None:
        self._infos = [
            GpuInfo(
                index=n,
                uuid=f"SIM-{n}",
                name=name,
                memory_total_bytes=memory_bytes,
                nvlink=tuple(other for other in range(count) if other != n),
                simulated=True,
            )
            for n in range(count)
        ]
        self._claims: Mapping[str, Sequence[Claim]] = {}

    def claim(self, claims: Sequence[Claim]) -> None:
        """Replace all claims by these."""
        by_gpu: dict[str, list[Claim]] = {}
        for each in claims:
            by_gpu.setdefault(each.uuid, []).append(each)
        self._claims = by_gpu

    def inventory(self) -> list[GpuInfo]:
        """See `GpuProvider.inventory`."""
        return list(self._infos)

    def sample(self) -> list[GpuSample]:
        """See `GpuProvider.sample`. A simulated card has no sensors."""
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
