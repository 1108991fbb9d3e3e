"""What the kernel offers and the standard library does not wrap: prctl, /proc, atomic files."""

from __future__ import annotations

import ctypes
import fcntl
import os

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int | bytes) -> None:
    """Set one process attribute.

    :raises OSError: refused.
    """
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_small(path: str, limit: int = 65536) -> bytes:
    """The first `limit` bytes of a /proc file, without Python's file objects."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


class Stat:
    """The fields of /proc/PID/stat that say who a process is."""

    __slots__ = ("parent", "pid", "start_ticks", "state")

    def __init__(self, pid: int, raw: bytes) -> None:
        fields = raw[raw.rindex(b")") + 2 :].split()  # the name before it may hold anything
        self.pid = pid
        self.state = fields[0]
        self.parent = int(fields[1])
        self.start_ticks = int(fields[19])  # field 22 of proc(5)


def stat_of(pid: int) -> Stat | None:
    """None where there is no such process (any more)."""
    try:
        return Stat(pid, read_small(f"/proc/{pid}/stat", 1024))
    except (OSError, ValueError, IndexError):
        return None


def pids() -> list[int]:
    """All processes this user can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def boot_id() -> str:
    """Changes with every boot; with pid and start ticks it names a process for good."""
    return read_small("/proc/sys/kernel/random/boot_id").decode().strip()


def close_inherited(keep: int | None) -> None:
    """Close all but stdin, stdout, stderr and `keep`: a replica must not hold its starter's sockets open."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:  # the descriptor that listed the folder
                pass


def lock_folder(folder: str) -> int:
    """Hold `folder` for as long as the returned descriptor is open; one shim to a folder.

    :raises OSError: not there, not a folder, not ours alone to write, or another shim has it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.close(fd)
        raise PermissionError(1, "others may write there, or it belongs to another user", folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, "another shim runs there", folder) from None
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Write everything to a blocking descriptor."""
    while data:
        data = data[os.write(fd, data) :]


def write_atomically(folder: str, name: str, data: bytes) -> None:
    """Replace `folder`/`name` in one step, durably.

    A `.name.reserved` made by `reserve` is used up, so that a disk that has filled up since does not matter.
    """
    reserved = f"{folder}/.{name}.reserved"
    fd = os.open(reserved, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data.ljust(os.fstat(fd).st_size))  # JSON does not mind blanks at its end
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(reserved, f"{folder}/{name}")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def reserve(folder: str, name: str, size_bytes: int) -> None:
    """Set aside the space that a later `write_atomically` of up to `size_bytes` needs."""
    fd = os.open(f"{folder}/.{name}.reserved", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, b" " * size_bytes)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Unlink; a file that is not there is as good as removed."""
    try:
        os.unlink(path)
    except OSError:
        pass
