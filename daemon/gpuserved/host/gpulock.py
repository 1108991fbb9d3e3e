"""Leases of GPUs, host-wide: two daemons, of two users, cannot place replicas on the same part of a GPU.

One file a GPU in a folder that everybody may write to, /dev/shm: root's, sticky, open under systemd's ProtectSystem. A lease
is a lock on as many of 10,000 bytes as it is parts of the GPU, taken by open file description (fcntl_locking(2), F_OFD_SETLK):
the kernel keeps it while a process holds the descriptor, and whoever holds it (a replica's shim) may outlive whoever took it.
Nothing is left to clean. What a file says of its holders is written by them, for error messages; only the locks decide.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Refused
from gpuserved.host.logtail import clean

UNITS = 10_000
"""Parts of a GPU that can be leased: a hundredth of a percent."""
_NOTE_BYTES = 256
_NOTES_AT = 65536
"""Holders' notes lie behind the locked bytes, each at the first of its units."""
_FLOCK = "hhqqi4x"
"""struct flock with 64-bit offsets: type, whence, start, length, pid."""
_NAME = re.compile(r"[^A-Za-z0-9-]")
DEFAULT_FOLDER = Path("/dev/shm")  # noqa: S108 - shared on purpose, see above


class GpuHeld(Refused):
    """Somebody else has leased the GPU."""


@dataclass(frozen=True)
class Held:
    """A part of a GPU that is leased."""

    fraction: float
    holder: str
    """What the holder wrote of itself; not to be trusted."""


class GpuLocks:
    """One daemon's view of the host's leases."""

    def __init__(self, folder: Path, daemon: str) -> None:
        """:param daemon: how this daemon's leases are marked: its run folder."""
        self._folder = folder
        self._daemon = daemon

    def take(self, uuids: Sequence[str], fraction: float, replica: str, user: str) -> list[int]:
        """Lease a part of each GPU, or of none.

        :returns: descriptors; each lease lasts as long as a process holds its descriptor.
        :raises GpuHeld: names the GPU and its holder.
        :raises Refused: the file of a GPU cannot be used.
        """
        taken: list[int] = []
        try:
            for uuid in uuids:
                fd = self._take(uuid, fraction, f"{replica} of {user}\t{self._daemon}")
                taken += [fd]
        except BaseException:
            release(taken)
            raise
        return taken

    def held_by_others(self, uuid: str) -> list[Held]:
        """Leases that are not this daemon's. Where the file cannot be read there are none to be seen."""
        try:
            fd = _open(self._path(uuid), create=False)
        except OSError:
            return []
        try:
            found = []
            at = 0
            while at < UNITS and (lock := _conflict(fd, at, UNITS - at)) is not None:
                start, length = lock
                note = _note(fd, start)
                if note.partition("\t")[2] != self._daemon:
                    found.append(Held(length / UNITS, clean(note.partition("\t")[0]) or "an unknown holder"))
                at = start + length
            return found
        finally:
            os.close(fd)

    def _path(self, uuid: str) -> Path:
        return self._folder / f"gpuserve-{_NAME.sub('_', uuid)[:100]}.lock"

    def _take(self, uuid: str, fraction: float, note: str) -> int:
        path = self._path(uuid)
        while True:
            try:
                fd = _open(path, create=True)
            except OSError as error:
                raise Refused(
                    f"the lease of GPU {uuid} cannot be taken: {path}: {error.strerror}",
                    "remove that file, or let GPUSERVE_LOCK_DIR name a folder that every daemon of this host may write to",
                ) from None
            try:
                _lock(fd, max(1, round(fraction * UNITS)), note, uuid)
            except BaseException:
                os.close(fd)
                raise
            if _still_there(fd, path):
                return fd
            os.close(fd)  # its owner removed it meanwhile: a lock on it would guard nothing


def release(fds: Sequence[int]) -> None:
    """Close this process's descriptors; a lease whose descriptor another process has lasts on."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def folder(env: Mapping[str, str]) -> Path | None:
    """Where leases are kept on this host; None: it has no such folder."""
    given = env.get("GPUSERVE_LOCK_DIR")
    path = Path(given) if given else DEFAULT_FOLDER
    return path if path.is_dir() else None


def _open(path: Path, *, create: bool) -> int:
    """:raises OSError: it is not there, or not a plain file with one name."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        if not create:
            raise
        # O_EXCL: with fs.protected_regular the kernel refuses O_CREAT on a file of another user in a sticky folder.
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return _open(path, create=False)
        os.fchmod(fd, 0o666)  # for every user, whatever the umask: a write lock needs a file open for writing
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EPERM, "not a plain file with one name", str(path))
    return fd


def _still_there(fd: int, path: Path) -> bool:
    mine = os.fstat(fd)
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


def _lock(fd: int, units: int, note: str, uuid: str) -> None:
    """Lock free units, wherever they are.

    :raises GpuHeld: too few are free.
    """
    at, missing, others = 0, units, []
    while missing and at < UNITS:
        lock = _conflict(fd, at, UNITS - at)
        end = lock[0] if lock else UNITS
        length = min(missing, end - at)
        if length > 0:
            if not _try(fd, at, length):
                continue  # somebody was faster: look again from here
            _write_note(fd, at, note)
            missing -= length
        if missing and lock:
            others.append(_note(fd, lock[0]).partition("\t")[0])
            at = lock[0] + lock[1]
        else:
            at = end
    if missing:
        names = ", ".join(dict.fromkeys(clean(name) or "an unknown holder" for name in others))
        raise GpuHeld(
            f"GPU {uuid} is leased by {names}; {100 * (units - missing) / UNITS:.0f} % of it is free, and "
            f"{100 * units / UNITS:.0f} % is needed",
            "stop what holds it, or name other GPUs in gpus",
        )


def _try(fd: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _conflict(fd: int, start: int, length: int) -> tuple[int, int] | None:
    """Start and length of the first lock of another holder in a range."""
    found = _some_conflict(fd, start, length)
    while found is not None and found[0] > start:  # the kernel tells of any of them: look for one before it
        before = _some_conflict(fd, start, found[0] - start)
        if before is None:
            break
        found = before
    return found


def _some_conflict(fd: int, start: int, length: int) -> tuple[int, int] | None:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    kind, _, first, size, _ = struct.unpack(_FLOCK, answer)
    if kind == fcntl.F_UNLCK:
        return None
    first = max(first, start)
    end = UNITS if size == 0 else min(UNITS, first + size)
    return first, max(1, end - first)


def _write_note(fd: int, at: int, note: str) -> None:
    os.pwrite(fd, note.encode()[: _NOTE_BYTES - 1].ljust(_NOTE_BYTES, b"\0"), _NOTES_AT + at * _NOTE_BYTES)


def _note(fd: int, at: int) -> str:
    data = os.pread(fd, _NOTE_BYTES, _NOTES_AT + at * _NOTE_BYTES)
    return data.split(b"\0")[0].decode(errors="replace")
