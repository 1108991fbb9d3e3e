"""What an inherited CUDA_VISIBLE_DEVICES leaves of an inventory."""

from __future__ import annotations

from gpuserved.core.placement import GpuInfo


def limit(infos: list[GpuInfo], visible_devices: str | None) -> list[GpuInfo]:
    """The GPUs that the value names, in the order of the inventory; all where it is not set.

    CUDA's own rules: indexes or UUIDs (a prefix that fits one is enough), and the first entry that names nothing ends
    the list; so an empty value or -1 hides every GPU. Indexes are taken in PCI order, as the daemon hands them on.
    """
    if visible_devices is None:
        return list(infos)
    chosen: set[str] = set()
    for entry in visible_devices.split(","):
        found = _named(infos, entry.strip())
        if found is None:
            break
        chosen.add(found.uuid)
    return [info for info in infos if info.uuid in chosen]


def _named(infos: list[GpuInfo], entry: str) -> GpuInfo | None:
    if entry.isdecimal():
        return next((info for info in infos if info.index == int(entry)), None)
    if not entry.startswith(("GPU-", "MIG-", "SIM-")):
        return None
    found = [info for info in infos if info.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None
