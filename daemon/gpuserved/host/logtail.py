"""Reading the logs that shims write: rotated segments, the last lines, and what has come since."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

WRITTEN_LINES = 15
WRITTEN_MAX_BYTES = 64 * 1024
"""Of a log that is shown where a daemon did not start."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(line: str) -> str:
    """The line without terminal escapes and control bytes: a log is data, and may not drive a terminal."""
    return _CONTROL.sub("", _ESCAPES.sub("", line))


def segments(path: Path) -> list[Path]:
    """Rotated segments of `path`, oldest first, then `path` itself; those that exist."""
    rotated = []
    index = 1
    while (older := path.with_name(f"{path.name}.{index}")).exists():
        rotated.append(older)
        index += 1
    return [*reversed(rotated), *([path] if path.exists() else [])]


def last_lines(path: Path, count: int, *, max_bytes: int = 262_144) -> list[str]:
    """The last `count` lines, cleaned, from at most `max_bytes` of the newest segments."""
    found: list[str] = []
    left = max_bytes
    for segment in reversed(segments(path)):
        if left <= 0 or len(found) >= count:
            break
        try:
            with open(segment, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - left))
                raw = file.read(left)
        except OSError:
            continue
        left -= len(raw)
        # A progress bar rewrites its line with carriage returns: only the last state of it is a line.
        lines = [
            clean(one.rsplit("\r", 1)[-1]) for one in raw.decode(errors="replace").rstrip("\n").split("\n")
        ]
        found = [*lines, *found]
    return found[-count:] if found != [""] else []


def written_since(path: Path, begun_at: int) -> list[str]:
    """The last lines of a log since it had `begun_at` bytes, for a terminal."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begun_at, size - WRITTEN_MAX_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [clean(line) for line in text.splitlines() if line.strip()][-WRITTEN_LINES:]


@dataclass
class Tail:
    """Reads what was appended since the last call; follows rotation."""

    path: Path
    offset: int = 0
    inode: int = 0
    rest: bytes = b""

    def read(self, *, max_bytes: int = 65_536) -> list[str]:
        """New whole lines, cleaned; at most the last `max_bytes` of them, so that a flood costs the reader nothing."""
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self.inode or found.st_size < self.offset:
                    self.inode, self.offset, self.rest = found.st_ino, 0, b""
                if found.st_size == self.offset:
                    return []
                self.offset = max(self.offset, found.st_size - max_bytes)
                file.seek(self.offset)
                raw = self.rest + file.read(max_bytes)
                self.offset = file.tell()
        except OSError:
            return []
        *whole, self.rest = re.split(rb"[\r\n]", raw)
        self.rest = self.rest[-4096:]
        return [clean(one.decode(errors="replace")) for one in whole if one]
