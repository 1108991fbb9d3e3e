"""Pages of a log towards the past: through rotated segments and earlier starts, by a cursor that survives rotation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpuserved.api.errors import Invalid
from gpuserved.api.inspect import LogPage

_BLOCK_BYTES = 128 * 1024
LINE_MAX_BYTES = 16 * 1024
"""A longer line is cut: vLLM's longest, its configuration, has some 4 KiB."""
SCAN_MAX_BYTES = 64 * 1024 * 1024
"""One call of a search looks at this much; the cursor goes on from there."""


@dataclass(frozen=True)
class Cursor:
    """A place in a log: the inode of a segment (its name changes as it is rotated) and a byte offset in it."""

    inode: int
    offset: int

    def __str__(self) -> str:
        return f"{self.inode}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """:raises Invalid: this is no cursor."""
        inode, _, offset = text.partition(".")
        if not (inode.isascii() and inode.isdigit() and offset.isascii() and offset.isdigit()):
            raise Invalid(f"before={text[:40]!r}: expected a cursor from an earlier page")
        return cls(int(inode), int(offset))


def page(paths: Sequence[Path], before: Cursor | None, count: int, match: str | None = None) -> LogPage:
    """The last `count` lines before `before`, or before the end.

    :param paths: segments of all starts, oldest first.
    :param match: only lines that hold this text, whatever the case. Then `before` may be set with fewer lines: look further.
    """
    files = _open_all(paths)
    try:
        return _page(files, before, count, match.lower().encode() if match else None)
    finally:
        for file in files:
            file.close()


def _page(files: list[BinaryIO], before: Cursor | None, count: int, needle: bytes | None) -> LogPage:
    position, end = _place(files, before)
    after = None if position < 0 else str(Cursor(_inode(files[position]), end))
    found: list[bytes] = []
    scanned = 0
    while position >= 0 and len(found) < count and scanned < SCAN_MAX_BYTES:
        lines, start = _lines_before(files[position], end, count - len(found), needle)
        scanned += end - start
        found = lines + found
        end = start
        if end == 0:
            position -= 1
            end = files[position].seek(0, os.SEEK_END) if position >= 0 else 0
    return LogPage(
        lines=[line.decode(errors="replace") for line in found],
        before=str(Cursor(_inode(files[position]), end)) if position >= 0 and (position or end) else None,
        after=after,
    )


def _place(files: list[BinaryIO], before: Cursor | None) -> tuple[int, int]:
    """The segment and offset to read backwards from; (-1, 0): there is nothing before."""
    if before is None:
        return len(files) - 1, _whole_lines_end(files[-1]) if files else 0
    for position, file in enumerate(files):
        if _inode(file) == before.inode:
            return position, min(before.offset, file.seek(0, os.SEEK_END))
    return -1, 0  # deleted meanwhile, and so is everything before it


def _whole_lines_end(file: BinaryIO) -> int:
    """The end of the last whole line: what is not finished belongs to whoever follows."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - LINE_MAX_BYTES)
    file.seek(start)
    newline = file.read(end - start).rfind(b"\n")
    return end if newline < 0 else start + newline + 1


def _lines_before(file: BinaryIO, end: int, count: int, needle: bytes | None) -> tuple[list[bytes], int]:
    """Up to `count` lines that end before `end`, and the offset where the first one looked at begins."""
    found: list[bytes] = []
    block = max(0, end - _BLOCK_BYTES)
    file.seek(block)
    raw = file.read(end - block)
    if block:
        newline = raw.find(b"\n")
        if 0 <= newline < len(raw) - 1:
            block += newline + 1
            raw = raw[newline + 1 :]
    position = end
    for line in reversed(raw.splitlines(keepends=True) if b"\r" not in raw else _split(raw)):
        position -= len(line)
        text = line.rstrip(b"\n")[:LINE_MAX_BYTES]
        if text and (needle is None or needle in text.lower()):
            found.append(text)
        if len(found) >= count:
            return found[::-1], position
    return found[::-1], block


def _split(raw: bytes) -> list[bytes]:
    """At newlines alone: a carriage return is part of a progress bar's line."""
    parts = raw.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _open_all(paths: Sequence[Path]) -> list[BinaryIO]:
    files: list[BinaryIO] = []
    for path in paths:
        try:
            files.append(open(path, "rb"))  # noqa: SIM115 - `page` closes them
        except OSError:  # rotated away while we looked
            continue
    return files


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
