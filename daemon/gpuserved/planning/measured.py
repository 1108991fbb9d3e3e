"""What vLLM reported at earlier starts, in `state/measured.json`: by model, GPU, sizes, flags and version."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.api.errors import GpuserveError
from gpuserved.core.planner.memory import Measured, Setting
from gpuserved.core.profile import Profile
from gpuserved.host import statefile

log = logging.getLogger(__name__)

SCHEMA = 1
KEPT = 256
"""Entries; the oldest go first."""
_NOT_MEMORY = frozenset({"gpu_memory_utilization", "revision", "tokenizer_revision"})
"""Flags that a measurement is carried over between."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, with the words that make it readable."""

    key: str
    at: float
    """Unix seconds."""
    model: str
    gpu: str
    measured: Measured


class MeasuredStore:
    """Reads and writes the file; serves several threads."""

    def __init__(self, state: Path) -> None:
        self._path = state / "measured.json"
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, Entry] = {}

    def find(self, key: str) -> Measured | None:
        """What was measured under a key."""
        with self._lock:
            self._refresh()
            entry = self._entries.get(key)
        return entry.measured if entry else None

    def add(self, key: str, model: str, gpu: str, measured: Measured) -> None:
        """Remember a start.

        :raises OSError: it cannot be written; what was known stays.
        """
        with self._lock:
            self._refresh()
            entries = {
                **self._entries,
                key: Entry(key=key, at=time.time(), model=model, gpu=gpu, measured=measured),
            }
            kept = sorted(entries.values(), key=lambda each: each.at)[-KEPT:]
            data: dict[str, Any] = {"entries": msgspec.to_builtins(kept)}
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            statefile.save(self._path, data, version=SCHEMA)
            self._entries = {each.key: each for each in kept}
            self._stamp = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _refresh(self) -> None:
        """Read what another process wrote. A file of a newer release or without sense is one that says nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            found = statefile.load(self._path, version=SCHEMA)
            entries = msgspec.convert((found.data or {}).get("entries", []), list[Entry])
        except (GpuserveError, OSError, msgspec.ValidationError) as error:
            log.warning("measured figures are not used: %s", error)
            entries = []
        self._entries = {each.key: each for each in entries}


def key_of(identity: str, setting: Setting, profile: Profile, version: str) -> str:
    """The same for starts whose memory is the same but for the utilisation."""
    flags = {name: value for name, value in sorted(profile.flags.items()) if name not in _NOT_MEMORY}
    # The environment may hold secrets; its digest does not tell them.
    parts = [
        identity, setting.gpu_name, setting.memory_total_bytes, setting.tensor_parallel_size, setting.data_parallel_size,
        flags, sorted(profile.env.items()), version,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
