"""Where GPU facts come from. Everything a provider does not know is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from gpuserved.core.gpufault import Xid
from gpuserved.core.placement import GpuInfo

OK = "OK"
LOST = "LOST"


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory on a GPU."""

    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class GpuSample:
    """One GPU's figures at one moment; what does not change is its `GpuInfo`."""

    index: int
    uuid: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    state: str = OK
    """OK or LOST."""
    processes: tuple[GpuProcess, ...] | None = None
    """None: the driver does not tell."""
    ecc_uncorrected: int | None = None
    """Uncorrectable ECC errors since the driver was loaded."""
    remap_pending: bool | None = None
    """Memory rows wait for a reset to be remapped."""
    remap_failed: bool | None = None
    recovery: str | None = None
    """What the driver says would make the GPU whole: none, reset, drain_and_reset, drain_p2p, bus_reset, reboot."""
    xids: tuple[Xid, ...] | None = None
    """The latest Xid events since the daemon began, oldest first; None: nobody can be asked."""


class GpuProvider(Protocol):
    """A source of GPU facts. Calls may block (a driver that hangs): go through `Sampler` on an event loop."""

    @property
    def name(self) -> str:
        """nvml, file, sim or none."""

    @property
    def reason(self) -> str | None:
        """Why there is nothing to see, or what is wrong with the source; None: all well."""

    def inventory(self) -> list[GpuInfo]:
        """The GPUs there are, in the order of their indexes."""

    def sample(self) -> list[GpuSample]:
        """The figures of each of them, lost ones included."""


class NoneProvider:
    """A host without GPUs, or where nobody may look."""

    name = "none"

    def __init__(self, reason: str | None = None) -> None:
        self.reason: str | None = reason

    def inventory(self) -> list[GpuInfo]:
        """Nothing."""
        return []

    def sample(self) -> list[GpuSample]:
        """Nothing."""
        return []


class Combined:
    """Several providers as one: what a host has, then what is simulated. Indexes of later ones go on from the earlier."""

    name = "combined"

    def __init__(self, providers: list[GpuProvider]) -> None:
        self._providers = providers

    @property
    def reason(self) -> str | None:
        """The first reason that any of them has."""
        return next((each.reason for each in self._providers if each.reason), None)

    def inventory(self) -> list[GpuInfo]:
        found: list[GpuInfo] = []
        for provider in self._providers:
            first = _next_index(found)
            found += (
                [_renumbered(info, first) for info in provider.inventory()] if first else provider.inventory()
            )
        return found

    def sample(self) -> list[GpuSample]:
        """Matched to the inventory by UUID."""
        index_of = {info.uuid: info.index for info in self.inventory()}
        return [
            _with_index(sample, index_of.get(sample.uuid, sample.index))
            for provider in self._providers
            for sample in provider.sample()
        ]


def _next_index(found: list[GpuInfo]) -> int:
    return max((info.index for info in found), default=-1) + 1


def _renumbered(info: GpuInfo, first: int) -> GpuInfo:
    return replace(info, index=info.index + first, nvlink=tuple(index + first for index in info.nvlink))


def _with_index(sample: GpuSample, index: int) -> GpuSample:
    return replace(sample, index=index)
