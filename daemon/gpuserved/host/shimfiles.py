"""What a shim leaves on disk, and the last resort when a shim itself was killed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserved.core.cause import ExitInfo

IDENTITY = "replica.json"
EXIT = "exit.json"
_LARGEST_BYTES = 64 * 1024
_ROUNDS = 16


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
    found = _stat(pid)
    return found[1] if found is not None else None


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start of a living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in {b"Z", b"X"} else (int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def marked_by(nonce: str) -> dict[int, int]:
    """Pid and start ticks of every living process of this user with GPUSERVE_NONCE=`nonce`, and of all below them."""
    mark = b"GPUSERVE_NONCE=" + nonce.encode()
    parents: dict[int, int] = {}
    starts: dict[int, int] = {}
    marked: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        found = _stat(pid)
        if found is None or pid == os.getpid():
            continue
        parents[pid], starts[pid] = found
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if mark in environ.split(b"\0"):
                    marked.add(pid)
        except OSError:
            continue
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in marked and pid not in marked}
        marked |= below
        grown = bool(below)
    return {pid: starts[pid] for pid in marked}


def sweep_by_nonce(nonce: str) -> list[int]:
    """SIGKILL to every process of one start, where its shim was killed and cannot do it.

    :returns: the pids that were hit; empty means that nothing of that start lives. They may take a moment to be gone.
    """
    hit: dict[tuple[int, int], None] = {}
    for _ in range(_ROUNDS):
        fresh = [pair for pair in marked_by(nonce).items() if pair not in hit]
        if not fresh:
            break
        for pid, ticks in fresh:
            hit[pid, ticks] = None
            _kill_exactly(pid, ticks)
    return [pid for pid, _ in hit]


def _kill_exactly(pid: int, ticks: int) -> None:
    """The pidfd pins the process before its start is compared: a reused pid is never hit."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_ticks(pid) == ticks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)
