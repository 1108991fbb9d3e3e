"""The NVML provider against a scripted binding: the real one needs a card, and no card can be made to fall off its bus."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.host.nvml import NvmlUnavailable
from gpuserved.telemetry.choose import choose
from gpuserved.telemetry.nvml import NvmlProvider
from gpuserved.telemetry.provider import LOST

GIB = 1024**3


class Driver(ModuleType):
    """As much of the `pynvml` module as a driver of some age has; a handle is the GPU's index."""

    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(self, gpus: int = 2) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.lost: set[int] = set()
        self.mig: dict[int, int] = {}
        self.starts = True

    def _alive(self, handle: Any) -> None:
        if handle in self.lost:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if not self.starts:
            raise self.NVMLError(9)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's name
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - NVML's name
        return index

    def nvmlDeviceGetUUID(self, handle: Any) -> str:  # noqa: N802 - NVML's name
        self._alive(handle)
        return f"GPU-{handle}" if isinstance(handle, int) else f"MIG-{handle[0]}-{handle[1]}"

    def nvmlDeviceGetName(self, handle: Any) -> bytes:  # noqa: N802 - NVML's name
        self._alive(handle)
        return b"NVIDIA H100\x1b[31m"

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int = 1) -> SimpleNamespace:  # noqa: N802 - NVML's name
        self._alive(handle)
        if version != 1:
            return SimpleNamespace(used=2 * GIB, reserved=GIB, total=80 * GIB)
        return SimpleNamespace(used=3 * GIB, total=80 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[SimpleNamespace]:  # noqa: N802 - NVML's name
        self._alive(handle)
        return [SimpleNamespace(pid=41, usedGpuMemory=2 * GIB), SimpleNamespace(pid=40, usedGpuMemory=None)]

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> SimpleNamespace:  # noqa: N802 - NVML's name
        raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802 - NVML's name
        self._alive(handle)
        return 123_456

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, what: int) -> int:  # noqa: N802 - NVML's name
        return 0 if {one, other} == {0, 1} else 6

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802 - NVML's name
        return (1, 1) if handle in self.mig else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:  # noqa: N802 - NVML's name
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, slot: int) -> tuple[int, int]:  # noqa: N802 - NVML's name
        if slot >= self.mig[handle]:
            raise self.NVMLError(6)
        return (handle, slot)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_figures_and_what_the_driver_does_not_know(driver: Driver) -> None:
    driver.gpus = 3
    provider = NvmlProvider()
    first = provider.inventory()[0]
    assert (first.index, first.uuid, first.memory_total_bytes) == (0, "GPU-0", 80 * GIB)
    assert "\x1b" not in first.name
    assert first.nvlink == (1,)
    assert provider.inventory()[2].nvlink == ()
    assert first.compute_capability is None
    assert first.memory_reserved_bytes is None, "the binding knows the first form of the answer alone"
    sample = provider.sample()[0]
    assert sample.memory_used_bytes == 3 * GIB
    assert sample.power_w == pytest.approx(123.456)
    assert sample.utilization_pct is None
    assert sample.temperature_c is None
    assert sample.processes is not None
    assert [(p.pid, p.memory_bytes) for p in sample.processes] == [(40, None), (41, 2 * GIB)]


def test_what_the_driver_keeps_for_itself_is_told_by_newer_bindings(driver: Driver) -> None:
    driver.nvmlMemory_v2 = 2  # type: ignore[attr-defined]
    first = NvmlProvider().inventory()[0]
    assert (first.memory_total_bytes, first.memory_reserved_bytes) == (80 * GIB, GIB)


@pytest.mark.fault(15)
def test_a_lost_gpu_keeps_its_row_and_the_others_their_figures(driver: Driver) -> None:
    provider = NvmlProvider()
    driver.lost.add(1)
    good, lost = provider.sample()
    assert good.state == "OK"
    assert lost.state == LOST
    assert lost.uuid == "GPU-1"
    assert lost.memory_used_bytes is None
    driver.lost.clear()
    assert provider.sample()[1].state == "OK"


def test_mig_devices_stand_in_for_their_gpu(driver: Driver) -> None:
    driver.mig[1] = 2
    provider = NvmlProvider()
    assert [(info.index, info.uuid) for info in provider.inventory()] == [
        (0, "GPU-0"), (200, "MIG-1-0"), (201, "MIG-1-1"),
    ]  # fmt: skip


def test_an_inherited_limit_is_obeyed(driver: Driver) -> None:
    assert [info.uuid for info in choose({"CUDA_VISIBLE_DEVICES": "1"}).inventory()] == ["GPU-1"]
    hidden = choose({"CUDA_VISIBLE_DEVICES": ""})
    assert hidden.inventory() == []
    assert hidden.reason is not None
    assert "hides all 2 GPUs" in hidden.reason


@pytest.mark.fault(17)
def test_no_driver(driver: Driver) -> None:
    driver.starts = False
    with pytest.raises(NvmlUnavailable, match="NVML does not start"):
        NvmlProvider()
    provider = choose({})
    assert provider.name == "none"
    assert provider.reason
    with pytest.raises(Invalid):
        choose({}, "nvml")


def test_no_card(driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(NvmlUnavailable, match="no GPU"):
        NvmlProvider()
