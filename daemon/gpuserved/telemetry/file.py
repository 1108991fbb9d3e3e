"""GPUs as a JSON file describes them (`--inventory`), for plans on paper and for tests that script faults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.api.errors import Invalid
from gpuserved.core.gpufault import Xid
from gpuserved.core.placement import GpuInfo
from gpuserved.telemetry.provider import OK, GpuProcess, GpuSample


class _Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pid: int
    memory_bytes: int | None = None


class _Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry. The fields after `compute_capability` are figures that a test may script."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    nvlink: list[int] = []
    numa_node: int | None = None
    compute_capability: str | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    state: str = OK
    processes: list[_Process] | None = None
    ecc_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    recovery: str | None = None
    xids: list[int] | None = None
    """Xid numbers since the beginning, oldest first: a later file has what the earlier one had, and more."""


class _Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gpus: list[_Gpu]


def parse(document: Any, source: str) -> tuple[list[GpuInfo], list[GpuSample]]:
    """Infos and samples of an inventory document, sorted by index.

    :raises Invalid: names the field that is wrong.
    """
    try:
        gpus = sorted(msgspec.convert(document, _Inventory).gpus, key=lambda gpu: gpu.index)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"{source}: {error}",
            hint='the form is {"gpus": [{"index", "uuid", "name", "memory_total_bytes", "memory_used_bytes", "nvlink"}]}',
        ) from error
    for field in ("index", "uuid"):
        values = [getattr(gpu, field) for gpu in gpus]
        if twice := [value for value in values if values.count(value) > 1]:
            raise Invalid(f"{source}: two GPUs have the {field} {twice[0]}")
    return [_info(gpu) for gpu in gpus], [_sample(gpu) for gpu in gpus]


def _info(gpu: _Gpu) -> GpuInfo:
    return GpuInfo(
        gpu.index,
        gpu.uuid,
        gpu.name,
        gpu.memory_total_bytes,
        tuple(gpu.nvlink),
        gpu.numa_node,
        gpu.compute_capability,
        memory_reserved_bytes=gpu.memory_reserved_bytes,
    )


def _sample(gpu: _Gpu) -> GpuSample:
    processes = (
        None if gpu.processes is None else tuple(GpuProcess(p.pid, p.memory_bytes) for p in gpu.processes)
    )
    return GpuSample(
        gpu.index, gpu.uuid, gpu.memory_used_bytes, gpu.memory_total_bytes, gpu.utilization_pct, gpu.temperature_c,
        gpu.power_w, gpu.state, processes, gpu.ecc_uncorrected, gpu.remap_pending, gpu.remap_failed, gpu.recovery,
        xids=None if gpu.xids is None else tuple(Xid(n, number) for n, number in enumerate(gpu.xids, 1)),
    )  # fmt: skip


class FileProvider:
    """The file is read again when it changes; a broken one leaves the last good figures, with a reason."""

    name = "file"

    def __init__(self, path: Path) -> None:
        """:raises Invalid: the file cannot be read, or is no inventory."""
        self.reason: str | None = None
        self._path = path
        self._identity: tuple[int, ...] | None = None
        self._infos: list[GpuInfo] = []
        self._samples: list[GpuSample] = []
        self._read()

    def inventory(self) -> list[GpuInfo]:
        self._refresh()
        return list(self._infos)

    def sample(self) -> list[GpuSample]:
        self._refresh()
        return list(self._samples)

    def _refresh(self) -> None:
        try:
            if self._identity != self._look():
                self._read()
        except (Invalid, OSError) as error:
            self.reason = str(error)

    def _look(self) -> tuple[int, ...]:
        found = os.stat(self._path)
        return (found.st_ino, found.st_size, found.st_mtime_ns)

    def _read(self) -> None:
        try:
            identity = self._look()
            document = json.loads(self._path.read_bytes())
        except OSError as error:
            raise Invalid(
                f"{self._path}: {error.strerror}", hint="give the path of an inventory file"
            ) from error
        except ValueError as error:
            raise Invalid(f"{self._path}: not JSON: {error}") from error
        self._infos, self._samples = parse(document, str(self._path))
        self._identity, self.reason = identity, None
