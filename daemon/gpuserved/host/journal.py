"""An append-only file of lines with a bounded size, written by a thread of its own: whoever appends never waits for a disk."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

WAITING_MAX = 1_000
"""Lines that wait for a slow disk; more are left out and counted."""


class Journal:
    """Appends lines to `path`; a full file becomes `path.1`, in place of the one before it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """:param max_bytes: of one file; the two together hold at most twice this."""
        self._path = path
        self._max_bytes = max_bytes
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None
        self._failed = False
        self.lost = 0
        """Lines that the disk refused, or that were too many at once."""

    def append(self, line: bytes) -> None:
        """Write one line (without its end) as soon as may be. Never blocks, never fails."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and end; a disk that hangs is not waited for longer than this."""
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            lines = [self._waiting.get()]
            while not self._waiting.empty():
                lines.append(self._waiting.get())
            whole = [line for line in lines if line is not None]
            try:
                if whole:
                    self._write(b"".join(line + b"\n" for line in whole))
                self._failed = False
            except OSError as error:
                self.lost += len(whole)
                if not self._failed:
                    log.warning("%s: %s; what happens is not kept until it can be written", self._path, error)
                self._failed = True
            if None in lines:
                return

    def _write(self, block: bytes) -> None:
        """Opened for each block: lines are rare, and the file may have been moved or removed meanwhile."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                block = b"\n" + block  # a writer that was killed left half a line
            file.write(block)
        if size + len(block) >= self._max_bytes:
            os.replace(self._path, older(self._path))


def older(path: Path) -> Path:
    """The file before `path`."""
    return path.with_name(f"{path.name}.1")


def read_lines(path: Path) -> Iterator[bytes]:
    """Every whole line that is kept, oldest first; none where there is no file, or it cannot be read."""
    for each in (older(path), path):
        try:
            raw = each.read_bytes()
        except OSError:
            continue
        # What follows the last line end is half a line.
        yield from (line for line in raw.split(b"\n")[:-1] if line)
