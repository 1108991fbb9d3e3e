"""NVML behind typed calls that answer None where a card, a driver or a permission has no answer. The only use of pynvml."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuserved.core.gpufault import Xid

log = logging.getLogger(__name__)

MIG_ENABLED = 1
NO_LIBRARY, NO_DRIVER, NO_PERMISSION, MISMATCH = 12, 9, 4, 18
"""NVML's own numbers: LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, NO_PERMISSION, LIB_RM_VERSION_MISMATCH."""
XID = 0x8
"""nvmlEventTypeXidCriticalError."""
WAIT_MS = 1000
"""One wait for events; its end lets the thread see that it is to stop."""
PAUSE_S = 1.0
"""After an error: NVML answers GPU_IS_LOST at once, again and again, while a card is off the bus."""
KEPT = 32
"""Events of one GPU that a look can still find; a card in trouble reports the same one over and over."""
_RECOVERY = {
    0: "none", 1: "reset", 2: "reboot", 3: "drain_p2p", 4: "drain_and_reset", 6: "bus_reset", 7: "reboot",
}  # fmt: skip
"""NVML_GPU_RECOVERY_ACTION_..., in words; 5 is of a fabric that this program knows nothing of."""


class NvmlUnavailable(Exception):
    """No NVML on this host; the text says why, and `error` is NVML's number where NVML itself said it."""

    def __init__(self, text: str, error: int | None = None) -> None:
        super().__init__(text)
        self.error = error


class GpuLost(Exception):
    """The GPU has fallen off the bus, or needs a reset."""


@dataclass(frozen=True)
class Memory:
    """Device memory in bytes."""

    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Process:
    """A process that holds a context on a GPU. `memory_bytes` None: not told (no permission, MIG)."""

    pid: int
    memory_bytes: int | None


class Nvml:
    """An open NVML. Every call may block for as long as the driver does: never call it on an event loop."""

    def __init__(self) -> None:
        """:raises NvmlUnavailable: no library, no driver, or they do not match."""
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailable(f"the nvidia-ml-py package does not load: {error}") from error
        self._lib: Any = pynvml
        try:
            pynvml.nvmlInit()
        except Exception as error:
            number = getattr(error, "value", None)
            raise NvmlUnavailable(
                f"NVML does not start: {_text(error)}", number if isinstance(number, int) else None
            ) from error

    def close(self) -> None:
        """Let go of the driver."""
        self._ask("nvmlShutdown")

    def driver_version(self) -> str | None:
        """As `nvidia-smi` shows it."""
        return _string(self._ask("nvmlSystemGetDriverVersion"))

    def cuda_version(self) -> tuple[int, int] | None:
        """The newest CUDA that the driver runs, as (major, minor)."""
        found = self._ask("nvmlSystemGetCudaDriverVersion_v2") or self._ask("nvmlSystemGetCudaDriverVersion")
        return (found // 1000, found % 1000 // 10) if isinstance(found, int) and found > 0 else None

    def count(self) -> int:
        """Number of GPUs that the driver shows to this process."""
        return int(self._ask("nvmlDeviceGetCount") or 0)

    def handle(self, index: int) -> Any | None:
        """The device at an index in PCI order."""
        return self._ask("nvmlDeviceGetHandleByIndex", index)

    def uuid(self, handle: Any) -> str | None:
        """`GPU-...` or `MIG-...`."""
        return _string(self._ask("nvmlDeviceGetUUID", handle))

    def name(self, handle: Any) -> str | None:
        """The product's name."""
        return _string(self._ask("nvmlDeviceGetName", handle))

    def memory(self, handle: Any) -> Memory | None:
        """Used (with the driver's own reserve) and total bytes."""
        found = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return Memory(int(found.used), int(found.total)) if found is not None else None

    def reserved_bytes(self, handle: Any) -> int | None:
        """Part of the total that the driver keeps from CUDA; None: this driver does not tell."""
        second = getattr(self._lib, "nvmlMemory_v2", None)  # the first form of the answer has it not
        found = self._ask("nvmlDeviceGetMemoryInfo", handle, second) if second is not None else None
        reserved = getattr(found, "reserved", None)
        return int(reserved) if isinstance(reserved, int) else None

    def utilization_pct(self, handle: Any) -> float | None:
        """Share of the last sample period in which a kernel ran."""
        found = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return float(found.gpu) if found is not None else None

    def temperature_c(self, handle: Any) -> float | None:
        """Of the die."""
        found = self._ask("nvmlDeviceGetTemperature", handle, 0)  # 0: NVML_TEMPERATURE_GPU
        return float(found) if found is not None else None

    def power_w(self, handle: Any) -> float | None:
        """Present draw; NVML tells milliwatts."""
        found = self._ask("nvmlDeviceGetPowerUsage", handle)
        return found / 1000.0 if found is not None else None

    def processes(self, handle: Any) -> list[Process] | None:
        """Compute and graphics processes; None where the driver does not tell."""
        compute = self._ask("nvmlDeviceGetComputeRunningProcesses", handle)
        graphics = self._ask("nvmlDeviceGetGraphicsRunningProcesses", handle)
        if compute is None and graphics is None:
            return None
        found: dict[int, int | None] = {}
        for each in [*(compute or []), *(graphics or [])]:
            memory = getattr(each, "usedGpuMemory", None)
            if found.get(int(each.pid)) is None:
                found[int(each.pid)] = int(memory) if memory is not None else None
        return [Process(pid, memory) for pid, memory in sorted(found.items())]

    def compute_capability(self, handle: Any) -> str | None:
        """As in `9.0`."""
        found = self._ask("nvmlDeviceGetCudaComputeCapability", handle)
        return f"{found[0]}.{found[1]}" if found is not None else None

    def numa_node(self, handle: Any) -> int | None:
        """The host memory it is nearest to."""
        found = self._ask("nvmlDeviceGetNumaNodeId", handle)
        return int(found) if isinstance(found, int) and found >= 0 else None

    def linked(self, handle: Any, other: Any) -> bool:
        """True where NVLink joins the two, directly or by a switch."""
        lib = self._lib
        index = getattr(lib, "NVML_P2P_CAPS_INDEX_NVLINK", None)
        if index is None:
            return False
        return bool(self._ask("nvmlDeviceGetP2PStatus", handle, other, index) == lib.NVML_P2P_STATUS_OK)

    def ecc_uncorrected(self, handle: Any) -> int | None:
        """Uncorrectable ECC errors since the driver was loaded; None: no ECC memory, or ECC is off."""
        # 1: NVML_MEMORY_ERROR_TYPE_UNCORRECTED, 0: NVML_VOLATILE_ECC
        found = self._ask("nvmlDeviceGetTotalEccErrors", handle, 1, 0)
        return int(found) if isinstance(found, int) else None

    def remapped_rows(self, handle: Any) -> tuple[bool, bool] | None:
        """Whether memory rows wait for a reset to be remapped, and whether remapping has failed (Ampere and later)."""
        found = self._ask("nvmlDeviceGetRemappedRows", handle)
        return (bool(found[2]), bool(found[3])) if found is not None else None

    def recovery_action(self, handle: Any) -> str | None:
        """What the driver says would make the GPU whole (driver 570 and later): none, reset, reboot, drain_p2p,
        drain_and_reset, bus_reset.
        """
        field = getattr(self._lib, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
        found = self._ask("nvmlDeviceGetFieldValues", handle, [field]) if field is not None else None
        if not found or found[0].nvmlReturn != 0:
            return None
        return _RECOVERY.get(int(found[0].value.uiVal))

    def mig_devices(self, handle: Any) -> list[Any] | None:
        """The MIG devices of a GPU in MIG mode; None: it is not in MIG mode."""
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != MIG_ENABLED:
            return None
        slots = int(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
        found = (self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in range(slots))
        return [each for each in found if each is not None]

    def xid_events(self, devices: Mapping[str, Any]) -> XidEvents:
        """Register for the events of these devices; those of which the driver reports none (old cards, missing rights) are left out.

        :param devices: UUID -> handle, of whole GPUs.
        """
        return XidEvents(self._lib, devices)

    def _ask(self, function: str, *args: Any) -> Any:
        """One query. None where it is not supported, not permitted or not known to this driver.

        :raises GpuLost: the device does not answer any more.
        """
        lib = self._lib
        call = getattr(lib, function, None)
        if call is None:
            return None
        try:
            return call(*args)
        except lib.NVMLError as error:
            lost = {
                getattr(lib, name, None) for name in ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED")
            }
            if getattr(error, "value", None) in lost - {None}:
                raise GpuLost(_text(error)) from error
            return None


class XidEvents:
    """Collects the Xid events of some devices from now on: the driver hands each to whoever waits, and a thread of its own waits, so
    that nobody else has to. `of` may be called from any thread and never waits.
    """

    def __init__(self, library: Any, devices: Mapping[str, Any]) -> None:
        self._lib = library
        self._lock = threading.Lock()
        self._events: dict[str, deque[Xid]] = {}
        self._ending = threading.Event()
        self._set: Any = self._call("nvmlEventSetCreate")
        for uuid, handle in devices.items():
            if self._set is not None and self._register(handle):
                self._events[uuid] = deque(maxlen=KEPT)
        self._seen = dict.fromkeys(self._events, 0)
        if self._events:
            # A daemon thread: a driver that hangs must not keep the process from ending.
            threading.Thread(target=self._run, name="gpu-events", daemon=True).start()

    def of(self, uuid: str) -> tuple[Xid, ...] | None:
        """The latest events of one GPU, oldest first; None: the driver does not report them."""
        with self._lock:
            found = self._events.get(uuid)
            return None if found is None else tuple(found)

    def close(self) -> None:
        """Let the thread end after its present wait."""
        self._ending.set()

    def _register(self, handle: Any) -> bool:
        try:
            known = int(self._lib.nvmlDeviceGetSupportedEventTypes(handle))
            if not known & XID:
                return False
            self._lib.nvmlDeviceRegisterEvents(handle, XID, self._set)
        except (AttributeError, self._lib.NVMLError) as error:
            log.info("no Xid events of a GPU: %s", error)
            return False
        return True

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                event = self._lib.nvmlEventSetWait_v2(self._set, WAIT_MS)
                uuid = self._lib.nvmlDeviceGetUUID(event.device)
            except self._lib.NVMLError as error:
                if getattr(error, "value", None) != self._lib.NVML_ERROR_TIMEOUT:
                    time.sleep(PAUSE_S)
                continue
            if int(event.eventType) & XID:
                self._take(uuid.decode() if isinstance(uuid, bytes) else uuid, int(event.eventData))
        self._call("nvmlEventSetFree", self._set)

    def _take(self, uuid: str, number: int) -> None:
        with self._lock:
            if uuid in self._events:
                self._seen[uuid] += 1
                self._events[uuid].append(Xid(self._seen[uuid], number))

    def _call(self, function: str, *args: Any) -> Any:
        call = getattr(self._lib, function, None)
        try:
            return call(*args) if call is not None else None
        except self._lib.NVMLError as error:
            log.info("%s: %s", function, error)
            return None


def _string(value: Any) -> str | None:
    if isinstance(value, bytes):  # older bindings
        value = value.decode(errors="replace")
    # Names come from firmware and end up on terminals.
    return "".join(c for c in value if c.isprintable()) if isinstance(value, str) else None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
