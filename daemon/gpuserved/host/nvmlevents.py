"""Xid events from NVML. The driver hands each to whoever waits; a thread of its own waits, so that nobody else has to."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from gpuserved.core.gpufault import Xid
from gpuserved.host.nvml import Nvml

log = logging.getLogger(__name__)

WAIT_MS = 1000
"""One wait; its end lets the thread see that it is to stop."""
PAUSE_S = 1.0
"""After an error: NVML answers GPU_IS_LOST at once, again and again, while a card is off the bus."""
KEPT = 32
"""Events of one GPU that a look can still find; a card in trouble reports the same one over and over."""
XID = 0x8
"""nvmlEventTypeXidCriticalError."""


class XidEvents:
    """Collects the Xid events of some devices from now on. `of` may be called from any thread and never waits."""

    def __init__(self, nvml: Nvml, devices: Mapping[str, Any]) -> None:
        """Register with the driver; devices of which it reports none (old cards, missing rights) are left out.

        :param devices: UUID -> handle, of whole GPUs.
        """
        self._lib = nvml.library
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
