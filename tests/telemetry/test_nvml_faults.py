"""What NVML tells of a GPU's health, against a scripted binding: Xid events, ECC counts, remapped rows, the recovery action."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.telemetry.test_nvml import Driver

from gpuserved.core.gpufault import Xid
from gpuserved.host import nvml
from gpuserved.telemetry.nvml import NvmlProvider


class Sick(Driver):
    """A driver that also knows of faults. GPU 1 is an old card: it reports no Xid events."""

    NVML_ERROR_TIMEOUT = 10
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230

    def __init__(self) -> None:
        super().__init__()
        self.events: queue.Queue[SimpleNamespace | int] = queue.Queue()
        self.registered: list[tuple[Any, int]] = []
        self.ecc: int | None = 0
        self.rows = (0, 0, 0, 0)
        self.action = 0
        self.waiting = threading.Event()
        self.freed = threading.Event()

    def nvmlEventSetCreate(self) -> str:  # noqa: N802 - NVML's name
        return "set"

    def nvmlEventSetFree(self, given: str) -> None:  # noqa: N802 - NVML's name
        assert given == "set"
        self.freed.set()

    def nvmlDeviceGetSupportedEventTypes(self, handle: Any) -> int:  # noqa: N802 - NVML's name
        return 0x1 | 0x8 if handle == 0 else 0x1

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: int, given: str) -> None:  # noqa: N802 - NVML's name
        assert given == "set"
        self.registered.append((handle, kinds))

    def nvmlEventSetWait_v2(self, given: str, timeout_ms: int) -> SimpleNamespace:  # noqa: N802 - NVML's name
        assert given == "set"
        self.waiting.set()
        try:
            found = self.events.get(timeout=min(timeout_ms, 50) / 1000)
        except queue.Empty:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT) from None
        if isinstance(found, int):
            raise self.NVMLError(found)
        return found

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> int:  # noqa: N802 - NVML's name
        assert (kind, counter) == (1, 0), "uncorrected, volatile"
        if self.ecc is None:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return self.ecc

    def nvmlDeviceGetRemappedRows(self, handle: Any) -> tuple[int, int, int, int]:  # noqa: N802 - NVML's name
        return self.rows

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[SimpleNamespace]:  # noqa: N802 - NVML's name
        assert fields == [230]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=self.action))]

    def strike(self, handle: Any, number: int, kind: int = 0x8) -> None:
        self.events.put(SimpleNamespace(device=handle, eventType=kind, eventData=number))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Sick:
    made = Sick()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(nvml, "PAUSE_S", 0.01)
    return made


@pytest.fixture
def provider(driver: Sick) -> Iterator[NvmlProvider]:
    made = NvmlProvider()
    yield made
    made.close()
    if driver.registered:
        assert driver.freed.wait(60)


def until(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.fault(16)
def test_xid_events_are_counted_and_bounded(driver: Sick, provider: NvmlProvider) -> None:
    """Taken by a thread of their own: a look never waits for one."""
    assert driver.registered == [(0, 0x8)]
    assert driver.waiting.wait(60)
    assert provider.sample()[0].xids == ()
    assert provider.sample()[1].xids is None, "not told is not none"
    driver.strike(0, 31)
    driver.strike(0, 7, kind=0x1)
    driver.events.put(15)  # NVML itself says that a GPU is lost: the next event is taken all the same
    driver.strike(0, 79)
    until(lambda: provider.sample()[0].xids == (Xid(1, 31), Xid(2, 79)))
    for _ in range(100):
        driver.strike(0, 92)
    until(lambda: (provider.sample()[0].xids or ())[-1] == Xid(102, 92))
    assert len(provider.sample()[0].xids or ()) == nvml.KEPT


@pytest.mark.fault(15)
def test_a_lost_gpu_keeps_the_events_that_explain_it(driver: Sick, provider: NvmlProvider) -> None:
    driver.strike(0, 79)
    until(lambda: provider.sample()[0].xids == (Xid(1, 79),))
    driver.lost.add(0)
    lost = provider.sample()[0]
    assert (lost.state, lost.xids, lost.ecc_uncorrected) == ("LOST", (Xid(1, 79),), None)


def test_counts_and_conditions_and_what_the_driver_does_not_tell(
    driver: Sick, provider: NvmlProvider
) -> None:
    driver.ecc, driver.rows, driver.action = 3, (1, 2, 1, 0), 4
    sample = provider.sample()[0]
    assert (sample.ecc_uncorrected, sample.remap_pending, sample.remap_failed, sample.recovery) == (
        3, True, False, "drain_and_reset",
    )  # fmt: skip
    driver.ecc, driver.action = None, 99
    sample = provider.sample()[0]
    assert (sample.ecc_uncorrected, sample.recovery) == (None, None)


def test_an_old_driver_tells_nothing_of_it_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    sample = NvmlProvider().sample()[0]
    assert sample.state == "OK"
    assert (sample.ecc_uncorrected, sample.remap_failed, sample.recovery, sample.xids) == (None,) * 4
