"""GPUs of this host, from NVML."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gpuserved.core.placement import GpuInfo
from gpuserved.host.nvml import GpuLost, Nvml, NvmlUnavailable
from gpuserved.telemetry.provider import LOST, GpuProcess, GpuSample
from gpuserved.telemetry.visible import limit

MIG_INDEX_STEP = 100
"""MIG devices have no index of their own: those of GPU 0 are shown as 100, 101 ..., of GPU 1 as 200, 201 ..."""


@dataclass(frozen=True)
class _Device:
    info: GpuInfo
    handle: Any
    sensors: Any
    """The handle that knows temperature, power and faults: a MIG device's GPU."""
    parent_uuid: str
    """Of that GPU."""


class NvmlProvider:
    """Devices are enumerated once; the handles of a lost GPU stay and answer LOST."""

    name = "nvml"

    def __init__(self, visible_devices: str | None = None, nvml: Nvml | None = None) -> None:
        """Open NVML.

        :param visible_devices: the inherited CUDA_VISIBLE_DEVICES, which limits the inventory.
        :raises NvmlUnavailable: there is none.
        """
        self.reason: str | None = None
        self._nvml = nvml or Nvml()
        found = self._enumerate()
        if not found:
            raise NvmlUnavailable("NVML works, but shows no GPU")
        seen = {info.uuid for info in limit([device.info for device in found], visible_devices)}
        self._devices = [device for device in found if device.info.uuid in seen]
        # A MIG device's events are its GPU's.
        self._events = self._nvml.xid_events({device.parent_uuid: device.sensors for device in self._devices})
        if not self._devices:
            self.reason = f"CUDA_VISIBLE_DEVICES={visible_devices} hides all {len(found)} GPUs"

    def inventory(self) -> list[GpuInfo]:
        return [device.info for device in self._devices]

    def sample(self) -> list[GpuSample]:
        return [self._sample(device) for device in self._devices]

    def _sample(self, device: _Device) -> GpuSample:
        nvml, info, xids = self._nvml, device.info, self._events.of(device.parent_uuid)
        try:
            memory, rows = nvml.memory(device.handle), nvml.remapped_rows(device.sensors)
            processes = nvml.processes(device.handle)
            return GpuSample(
                index=info.index,
                uuid=info.uuid,
                memory_used_bytes=memory.used_bytes if memory else None,
                memory_total_bytes=memory.total_bytes if memory else info.memory_total_bytes,
                utilization_pct=nvml.utilization_pct(device.handle),
                temperature_c=nvml.temperature_c(device.sensors),
                power_w=nvml.power_w(device.sensors),
                processes=None
                if processes is None
                else tuple(GpuProcess(p.pid, p.memory_bytes) for p in processes),
                ecc_uncorrected=nvml.ecc_uncorrected(device.sensors),
                remap_pending=rows[0] if rows else None,
                remap_failed=rows[1] if rows else None,
                recovery=nvml.recovery_action(device.sensors),
                xids=xids,
            )
        except GpuLost:
            total = info.memory_total_bytes
            return GpuSample(info.index, info.uuid, memory_total_bytes=total, state=LOST, xids=xids)

    def close(self) -> None:
        """Stop listening for events. A process that ends need not: its thread does not keep it."""
        self._events.close()

    def _enumerate(self) -> list[_Device]:
        nvml = self._nvml
        whole: list[_Device] = []
        parts: list[_Device] = []
        for index in range(nvml.count()):
            try:
                handle = nvml.handle(index)
                if handle is None:
                    continue
                mig = nvml.mig_devices(handle)
                if mig is None:
                    whole.append(self._device(index, handle, handle))
                    continue
                first = (index + 1) * MIG_INDEX_STEP
                parts += [self._device(first + n, part, handle) for n, part in enumerate(mig)]
            except GpuLost:
                self.reason = f"GPU {index} is lost: it answers no query since the daemon started"
        return [self._with_links(device, whole) for device in whole] + parts

    def _device(self, index: int, handle: Any, parent: Any) -> _Device:
        info = self._info(index, handle, parent)
        return _Device(info, handle, parent, info.uuid if handle is parent else self._nvml.uuid(parent) or "")

    def _info(self, index: int, handle: Any, parent: Any) -> GpuInfo:
        nvml = self._nvml
        memory = nvml.memory(handle)
        return GpuInfo(
            index=index,
            uuid=nvml.uuid(handle) or f"GPU-unknown-{index}",
            name=nvml.name(handle) or nvml.name(parent) or "unknown GPU",
            memory_total_bytes=memory.total_bytes if memory else None,
            numa_node=nvml.numa_node(parent),
            compute_capability=nvml.compute_capability(parent),
            memory_reserved_bytes=nvml.reserved_bytes(handle),
        )

    def _with_links(self, device: _Device, others: list[_Device]) -> _Device:
        try:
            linked = tuple(
                other.info.index
                for other in others
                if other is not device and self._nvml.linked(device.handle, other.handle)
            )
        except GpuLost:
            return device
        return replace(device, info=replace(device.info, nvlink=linked))
