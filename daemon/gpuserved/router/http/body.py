"""A request's body, held so that it can be sent again: in memory to 1 MiB, then in an unnamed file."""

from __future__ import annotations

import mmap
import tempfile
from typing import IO

MEMORY_MAX_BYTES = 1024 * 1024
SLICE_BYTES = 256 * 1024


class Body:
    """Gathers a body piece by piece."""

    __slots__ = ("_file", "_map", "_memory", "size")

    def __init__(self) -> None:
        self._memory: bytes | bytearray = b""
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self.size = 0

    def append(self, piece: bytes) -> None:
        """One more piece.

        :raises OSError: the file could not be written.
        """
        self.size += len(piece)
        if self._file is not None:
            self._file.write(piece)
            return
        if not self._memory:
            self._memory = piece
        elif isinstance(self._memory, bytes):
            # A list of pieces would cost a client's two-byte pieces twenty times their size.
            self._memory = bytearray().join((self._memory, piece))
        else:
            self._memory += piece
        if self.size > MEMORY_MAX_BYTES:
            self._file = tempfile.TemporaryFile(prefix="gpuserve-body-")  # noqa: SIM115 - lives as long as the request
            self._file.write(self._memory)
            self._memory = b""

    def view(self) -> bytes | mmap.mmap:
        """All of it, as something that can be sliced and decoded."""
        if self._file is not None:
            if self._map is None:
                self._file.flush()
                self._map = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
            return self._map
        if isinstance(self._memory, bytearray):
            self._memory = bytes(self._memory)
        return self._memory

    def close(self) -> None:
        """Let go of memory and file."""
        self._memory = b""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._file is not None:
            self._file.close()
            self._file = None
