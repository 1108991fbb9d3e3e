"""In-flight counts that the routers of one machine share: a file they all map, a row for each router, a column for each replica.

A router writes to its own row alone, so there is no lock: what is in flight on a replica is the sum of its column. A router that is
started again, after whatever end, begins by zeroing its row. A reader may see a count that is about to change; the choice of a
replica needs no more.

Layout, native u64/i64: a lock word's place (unused), rows in use; the key of each column; then the rows. Column 0 counts client
connections, -1 in a row nobody works on.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

COLUMNS = 1024
"""Replicas that share their counts; those beyond are counted by each router alone."""
ROWS_MAX = 64
_HEAD = 2
_ROWS_USED = 1
CONNECTIONS = 0
_WORD_BYTES = 8
MAP_BYTES = (_HEAD + COLUMNS + ROWS_MAX * COLUMNS) * _WORD_BYTES
_GONE = -1


class Cell:
    """One replica's column, as one router sees it."""

    __slots__ = ("_at", "_column", "_counts", "_words")

    def __init__(self, counts: Counts, words: memoryview, column: int, at: int) -> None:
        self._counts = counts
        self._words = words
        self._column = column
        self._at = at

    def add(self, more: int) -> None:
        """So many more are in flight there, or fewer."""
        self._words[self._at] += more

    def others(self) -> int:
        """What all other routers have in flight there."""
        words, column = self._words, self._column
        return sum([words[base + column] for base in self._counts.other_rows()])


class Counts:
    """One router's hold on the file."""

    def __init__(self, path: Path, row: int) -> None:
        """:raises OSError: the file cannot be mapped. :raises ValueError: no such row."""
        if not 0 <= row < ROWS_MAX:
            raise ValueError(f"row {row}: rows go from 0 to {ROWS_MAX - 1}")
        self.row = row
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(self._fd).st_size != MAP_BYTES:
            os.ftruncate(self._fd, MAP_BYTES)
        os.posix_fallocate(
            self._fd, 0, MAP_BYTES
        )  # a page that a full disk cannot give would kill the router
        self._map = mmap.mmap(self._fd, MAP_BYTES)
        self._keys = memoryview(self._map).cast("Q")
        self._words = memoryview(self._map).cast("q")
        self._base = _HEAD + COLUMNS + row * COLUMNS
        self._rows_seen = 0
        self._others: list[int] = []
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._words[_ROWS_USED] = max(self._words[_ROWS_USED], row + 1)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._clear(0)

    def _clear(self, connections: int) -> None:
        for column in range(COLUMNS):
            self._words[self._base + column] = 0
        self._words[self._base + CONNECTIONS] = connections

    def other_rows(self) -> list[int]:
        """Where the rows of all other routers begin."""
        used = self._words[_ROWS_USED]
        if used != self._rows_seen:
            self._rows_seen = used
            starts = (_HEAD + COLUMNS + row * COLUMNS for row in range(used))
            self._others = [start for start in starts if start != self._base]
        return self._others

    def cell(self, key: int) -> Cell | None:
        """The column of a replica; None: all are taken.

        :param key: 64 bits that stand for the replica, in every router and after every restart of it.
        """
        key = key or 1
        fcntl.flock(
            self._fd, fcntl.LOCK_EX
        )  # two routers that meet a replica at the same time agree on its column
        try:
            for step in range(COLUMNS - 1):
                column = 1 + (key + step) % (COLUMNS - 1)
                known = self._keys[_HEAD + column]
                if known in {0, key}:
                    self._keys[_HEAD + column] = key
                    return Cell(self, self._words, column, self._base + column)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return None

    def connections(self, count: int) -> None:
        """So many clients are connected here."""
        self._words[self._base + CONNECTIONS] = count

    def fewest_elsewhere(self) -> int | None:
        """The clients of the other router that has the fewest; None: there is no other."""
        counts = [self._words[start + CONNECTIONS] for start in self.other_rows()]
        at_work = [count for count in counts if count != _GONE]
        return min(at_work) if at_work else None

    def close(self) -> None:
        """Nobody works on the row any more."""
        self._clear(_GONE)
