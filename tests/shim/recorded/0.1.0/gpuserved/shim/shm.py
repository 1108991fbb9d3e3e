"""Shared memory files a killed engine leaves in /dev/shm: learn which ones its tree maps, remove them when it is gone.

A process that is SIGKILLed cannot unlink them, and each holds memory until a reboot. Only names that engines give to
throw-away segments are touched: people also keep whole models in /dev/shm, and engines map those as well.
"""

from __future__ import annotations

import os
import re
import stat

from gpuserved.shim.proc import pids

FOLDER = "/dev/shm"  # noqa: S108 - glibc's place for POSIX shared memory, not a temporary file of ours
# Python's multiprocessing (psm_, sem.mp-, sem.loky-), torch, NCCL, CUDA, vLLM's offload regions.
_THROW_AWAY = rb"(?:psm_|sem\.mp-|sem\.loky-|torch_|nccl-|cuda\.shm\.|vllm_offload_|vllm_ec_)[^/\n ]+"
# proc(5): ... offset MAJOR:MINOR inode PATH; an unlinked file has " (deleted)" behind its path.
_MAPPED = re.compile(rb" ([0-9a-f]+):([0-9a-f]+) (\d+) +/dev/shm/(" + _THROW_AWAY + rb")(?=\n)")
_CHUNK_BYTES = 64 * 1024
_MOST_FILES = 4096

File = tuple[bytes, int, int]
"""Name, device, inode."""


def mapped_by(pid: int) -> set[File]:
    """The throw-away files that a process maps; empty where it is gone or not ours to look at."""
    found: set[File] = set()
    try:
        fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return found
    rest = b""
    try:
        while data := os.read(fd, _CHUNK_BYTES):
            rest += data
            end = rest.rfind(b"\n") + 1
            if b" /dev/shm/" in rest:  # a CUDA process has thousands of mappings; few chunks need the pattern
                for major, minor, inode, name in _MAPPED.findall(rest, 0, end):
                    found.add((name, os.makedev(int(major, 16), int(minor, 16)), int(inode)))
            rest = rest[end:]
    except OSError:
        pass
    finally:
        os.close(fd)
    return found


class Leftovers:
    """What one tree maps, collected over its life."""

    def __init__(self) -> None:
        self._files: set[File] = set()

    def learn(self, tree: list[int]) -> None:
        """Look at the processes of the tree while they live."""
        for pid in tree:
            self._files |= mapped_by(pid)
        if len(self._files) > _MOST_FILES // 2:
            self._files = {file for file in self._files if _still_ours(file)}
        if len(self._files) > _MOST_FILES:
            self._files = set(sorted(self._files)[:_MOST_FILES])

    def remove(self) -> int:
        """Once the tree is gone: unlink what is still there, is ours, and nobody alive maps. Returns how many."""
        left = {file for file in self._files if _still_ours(file)}
        self._files = set()
        if not left:
            return 0
        for pid in pids():
            left -= mapped_by(pid)
            if not left:
                return 0
        removed = 0
        for name, _, _ in left:
            try:
                os.unlink(os.path.join(os.fsencode(FOLDER), name))
                removed += 1
            except OSError:
                pass
        return removed


def _still_ours(file: File) -> bool:
    name, device, inode = file
    try:
        found = os.lstat(os.path.join(os.fsencode(FOLDER), name))
    except OSError:
        return False
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and (found.st_dev, found.st_ino) == (device, inode)
    )
