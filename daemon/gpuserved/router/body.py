"""A request's body, held so that it can be sent again: in memory to 1 MiB, then in an unnamed file."""

from __future__ import annotations

import mmap
import tempfile
from typing import IO

MEMORY_MAX_BYTES = 1024 * 1024
SLICE_BYTES = 256 * 1024


class Body:
    """Gathers a body piece by piece."""

    __slots__ = ("_file", "_map", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
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
        self._pieces.append(piece)
        if self.size > MEMORY_MAX_BYTES:
            self._file = tempfile.TemporaryFile(prefix="gpuserve-body-")  # noqa: SIM115 - lives as long as the request
            self._file.writelines(self._pieces)
            self._pieces.clear()

    def view(self) -> bytes | mmap.mmap:
        """All of it, as something that can be sliced and decoded."""
        if self._file is not None:
            if self._map is None:
                self._file.flush()
                self._map = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
            return self._map
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def close(self) -> None:
        """Let go of memory and file."""
        self._pieces = []
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._file is not None:
            self._file.close()
            self._file = None
