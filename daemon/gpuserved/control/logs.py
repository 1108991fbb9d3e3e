"""Log files as a stream of lines: the last ones, and then whatever is written, through rotation and restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

POLL_S = 0.25
_BLOCK_BYTES = 64 * 1024
_LINE_MAX_BYTES = 256 * 1024
"""A longer line is passed on in pieces."""

Paths = Callable[[], Sequence[Path]]


def last_lines(paths: Sequence[Path], count: int) -> list[bytes]:
    """The last `count` lines over all segments, each with its line end; the newest may be without."""
    files = _open_all(paths)
    try:
        return _last_lines(files, count)
    finally:
        for file in files:
            file.close()


async def follow(paths: Paths, count: int, poll_s: float = POLL_S) -> AsyncGenerator[bytes, None]:
    """The last `count` lines, then new ones for ever, in blocks of whole lines.

    Works by inode: what was open when its segment was renamed is read to its end, then the segment after it. A new start of the
    replica has files of its own, which `paths` names from then on.
    """
    reader = LogReader()
    try:
        shown = reader.begin(await asyncio.to_thread(paths), count)
        if shown:
            yield b"".join(shown)
        while True:
            block = reader.read()
            if block:
                yield block
                continue
            moved, cut = reader.advance(await asyncio.to_thread(paths))
            if cut:
                yield cut
            if not moved:
                await asyncio.sleep(poll_s)
    finally:
        reader.close()


class LogReader:
    """One open segment at a time, and the line that is not whole yet."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._rest = b""

    def begin(self, paths: Sequence[Path], count: int) -> list[bytes]:
        """Stand at the end of the newest segment; the last lines before it."""
        files = _open_all(paths)
        if not files:
            return []
        shown = _last_lines(files, count)
        for file in files[:-1]:
            file.close()
        self._file = files[-1]
        if shown and not shown[-1].endswith(b"\n"):
            self._rest = shown.pop()
        return shown

    def begin_at(self, paths: Sequence[Path], cursor: str) -> None:
        """Stand at a cursor of `logpage`; at the start of the oldest segment where that place is gone."""
        inode, _, offset = cursor.partition(".")
        for file in _open_all(paths):
            if self._file is None and os.fstat(file.fileno()).st_ino == int(inode):
                file.seek(int(offset))
                self._file = file
            else:
                file.close()

    @property
    def place(self) -> tuple[int, int] | None:
        """Inode and offset of what has not been given out yet; None: nothing is open."""
        if self._file is None:
            return None
        return os.fstat(self._file.fileno()).st_ino, self._file.tell() - len(self._rest)

    def read(self) -> bytes:
        """New whole lines, or nothing."""
        if self._file is None:
            return b""
        held = self._rest + self._file.read(_BLOCK_BYTES)
        whole, newline, self._rest = held.rpartition(b"\n")
        if len(self._rest) > _LINE_MAX_BYTES:
            self._rest = b""
            return held + b"\n"
        return whole + newline

    def advance(self, paths: Sequence[Path]) -> tuple[bool, bytes]:
        """Go to the segment after the open one, or to the first where that is no longer there.

        :returns: whether there is more to read, and a last line that nobody will finish.
        """
        if self._file is not None and self._more():
            return True, b""
        mine = None if self._file is None else _identity(os.fstat(self._file.fileno()))
        here = [_identity_of(path) for path in paths]
        position = here.index(mine) + 1 if mine in here else 0
        if position >= len(paths):
            return False, b""
        opened = _open(paths[position])
        if opened is None:
            return False, b""
        cut = b"" if position or not self._rest else self._rest + b"\n"
        if cut:
            self._rest = b""
        self.close()
        self._file = opened
        return True, cut

    def _more(self) -> bool:
        """True where something was written since the last read: a rename follows the last write."""
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size > self._file.tell()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _last_lines(files: Sequence[BinaryIO], count: int) -> list[bytes]:
    """The last lines over files, oldest first; every file is left at the end that was looked at."""
    found: list[bytes] = []
    for file in reversed(files):
        end = file.seek(0, os.SEEK_END)
        if len(found) < count:
            found = _tail(file, end, count - len(found)) + found
        file.seek(end)
    return found[-count:] if count else []


def _tail(file: BinaryIO, end: int, count: int) -> list[bytes]:
    """The last lines before `end`, read in blocks from there."""
    position, held = end, b""
    while position > 0 and held.count(b"\n") <= count:
        step = min(_BLOCK_BYTES, position)
        position -= step
        file.seek(position)
        held = file.read(step) + held
    # At newlines alone: a carriage return is part of a progress bar's line.
    lines = [line + b"\n" for line in held.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line][-count:]


def _open_all(paths: Sequence[Path]) -> list[BinaryIO]:
    files = [_open(path) for path in paths]
    return [file for file in files if file is not None]


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:  # rotated away while we looked
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None
