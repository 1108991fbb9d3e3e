"""A log file under a size cap that never fails its writer: what cannot be written is dropped and counted."""

from __future__ import annotations

import os


class LogFile:
    """`path`, with older parts in `path.1`, `path.2`, ... `path.KEEP`; together at most (keep + 1) x max_bytes.

    A full or broken disk loses bytes, which are counted; the first write that succeeds again is a line that says how many.
    """

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.keep = keep
        self.dropped_bytes = 0
        self._unsaid_bytes = 0
        self._fd: int | None = None
        self._size = 0
        self._fresh = False

    def open(self) -> None:
        """Create the folder and the file.

        :raises OSError: it cannot be done.
        """
        self._fresh = not os.path.lexists(self.path)
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        self._open()

    def discard(self) -> None:
        """Close, and remove the file where this object made it and nothing was written: the start failed."""
        self._close()
        try:
            if self._fresh and os.lstat(self.path).st_size == 0:
                os.unlink(self.path)
        except OSError:
            pass

    def close(self) -> None:
        """Say what was dropped, if it can be said, and close."""
        self._writable()
        self._close()

    def note(self, text: str) -> None:
        """A line of the shim's own."""
        self.write(b"[gpuserve] " + text.encode(errors="replace") + b"\n")

    def write(self, data: bytes) -> None:
        """Append; where the cap falls inside `data`, cut at a line's end."""
        rest = memoryview(data)
        while rest:
            if not self._writable():
                self._drop(len(rest))
                return
            cut = self._cut(rest)
            written = self._append(rest[:cut])
            rest = rest[written:]
            if written < cut:
                self._drop(len(rest))
                self._close()  # opened anew next time: after an I/O error the old descriptor may stay dead
                return
            if rest:
                self._rotate()

    def _cut(self, data: memoryview) -> int:
        room = max(self.max_bytes - self._size, 0)
        if len(data) <= room:
            return len(data)
        line_end = bytes(data[:room]).rfind(b"\n") + 1
        # A line longer than a whole file is cut where the file ends.
        return line_end if line_end or self._size else room

    def _append(self, data: memoryview) -> int:
        """How many bytes reached the file; fewer than given where the disk refuses."""
        done = 0
        try:
            while done < len(data):
                assert self._fd is not None
                done += os.write(self._fd, data[done:])
        except OSError:
            pass
        self._size += done
        return done

    def _writable(self) -> bool:
        """Open where it is not, and with everything dropped before said; False while the disk refuses."""
        if self._fd is None:
            try:
                self._open()
            except OSError:
                return False
        if not self._unsaid_bytes:
            return True
        marker = f"\n[gpuserve] {self._unsaid_bytes} bytes dropped\n".encode()
        written = self._append(memoryview(marker))
        if written == len(marker):
            self._unsaid_bytes = 0
            return True
        self._shorten(self._size - written)
        self._close()
        return False

    def _drop(self, count: int) -> None:
        self.dropped_bytes += count
        self._unsaid_bytes += count

    def _rotate(self) -> None:
        """Shift the old parts by one. Where renaming fails the file is emptied instead: the cap is kept."""
        self._close()
        try:
            for number in range(self.keep - 1, 0, -1):
                if os.path.lexists(f"{self.path}.{number}"):
                    os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            if self.keep:
                os.rename(self.path, f"{self.path}.1")
            self._open()
            if not self.keep:
                self._shorten(0)
        except OSError:
            if self._fd is not None or os.path.lexists(self.path):
                self._empty()

    def _empty(self) -> None:
        try:
            self._open()
        except OSError:
            return
        self._shorten(0)

    def _shorten(self, size: int) -> None:
        try:
            assert self._fd is not None
            os.ftruncate(self._fd, size)
            self._size = size
        except OSError:
            pass

    def _open(self) -> None:
        self._close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
        self._fd = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
