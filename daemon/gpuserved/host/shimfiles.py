"""What a shim leaves on disk, and whether the processes it names still live."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserved.core.cause import ExitInfo

IDENTITY = "replica.json"
EXIT = "exit.json"
_LARGEST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Identity:
    """`replica.json`: who runs in a run folder. Ticks are those of /proc/PID/stat, times Unix seconds."""

    id: str
    generation: int
    nonce: str
    shim_pid: int
    shim_start_ticks: int
    pid: int
    pid_start_ticks: int
    started_at: float
    boot_id: str

    def shim_lives(self) -> bool:
        """True while this very shim runs: same boot, same pid, same start; a reused pid does not count."""
        return self.boot_id == boot_id() and start_ticks(self.shim_pid) == self.shim_start_ticks

    def process_lives(self) -> bool:
        """The same for the engine's API process."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.pid_start_ticks


@dataclass(frozen=True)
class ExitRecord:
    """`exit.json`: how a replica ended. `cause` is `exited`, `orphaned` or `killed`."""

    info: ExitInfo
    cause: str


def exit_info(raw: Any) -> ExitInfo:
    """The wire's `{code, signal, at}`.

    :raises ValueError: it is something else.
    """
    try:
        code, number = raw["code"], raw["signal"]
        return ExitInfo(
            None if code is None else int(code), None if number is None else int(number), float(raw["at"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an exit record: {error!r}") from None


def read_identity(folder: Path) -> Identity | None:
    """None where the file is missing or unreadable: there is no start to adopt."""
    raw = _read(folder / IDENTITY)
    try:
        return Identity(
            str(raw["id"]), int(raw["generation"]), str(raw["nonce"]), int(raw["shim_pid"]),
            int(raw["shim_start_ticks"]), int(raw["pid"]), int(raw["pid_start_ticks"]),
            float(raw["started_at"]), str(raw["boot_id"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def read_exit(folder: Path) -> ExitRecord | None:
    """None while the tree lives, and where its shim was killed before it could write."""
    raw = _read(folder / EXIT)
    try:
        return ExitRecord(exit_info(raw), str(raw["cause"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> Any:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return json.loads(os.read(fd, _LARGEST_BYTES))
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return None


def boot_id() -> str:
    """Changes with every boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where there is none or it is a zombie."""
    found = process_stat(pid)
    return found[1] if found is not None else None


def process_stat(pid: int) -> tuple[int, int] | None:
    """Parent and start of a living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in {b"Z", b"X"} else (int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None
