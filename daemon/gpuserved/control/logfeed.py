"""Several logs as one stream for a screen: what was written since the last look, and a count of what was too much."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpuserved.api.inspect import LogBatch
from gpuserved.control.logpage import LINE_MAX_BYTES, Cursor, page
from gpuserved.control.logs import LogReader

POLL_S = 0.25
LINES_MAX = 500
"""Lines of one source for each look: 2,000 a second, some thirty times what anybody reads. The newest ones."""
ROTATION_S = 1.0
"""A source that has nothing new is asked this often whether it has gone on in another file."""
_LOOK_MAX_BYTES = 32 * 1024 * 1024
"""Read of one source for each look, so that a flood of one does not hold up the others; the rest comes with the next look."""

Sources = Mapping[str, Callable[[], Sequence[Path]]]


class LogFeed:
    """Reads its sources whenever it is asked. Blocking calls: for a thread."""

    def __init__(self, sources: Sources, lines: int, after: Mapping[str, str] | None = None) -> None:
        """:param lines: of the past, of each source, with the first look.

        :param after: sources that go on at a cursor instead.
        """
        self._sources = sources
        self._after = dict(after or {})
        self._lines = lines
        self._readers: dict[str, LogReader] = {}
        self._asked: dict[str, float] = {}

    def look(self) -> list[LogBatch]:
        """What is new, one batch for each source that has written."""
        found = (self._look(name, paths) for name, paths in self._sources.items())
        return [batch for batch in found if batch is not None]

    def close(self) -> None:
        """Let go of all files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _look(self, name: str, paths: Callable[[], Sequence[Path]]) -> LogBatch | None:
        reader = self._readers.get(name)
        if reader is None:
            return self._begin(name, paths())
        lines, dropped = self._new_lines(name, reader, paths)
        if not lines and not dropped:
            return None
        return LogBatch(
            source=name,
            at=time.time(),
            lines=[_text(line) for line in lines],
            dropped=dropped,
            after=_cursor(reader),
        )

    def _begin(self, name: str, paths: Sequence[Path]) -> LogBatch | None:
        """The past of one source. What is written between the page and the reader's start is read by the reader."""
        if name in self._after:
            reader = self._readers[name] = LogReader()
            reader.begin_at(paths, self._after[name])
            return None
        shown = page(paths, None, self._lines)
        reader = self._readers[name] = LogReader()
        if shown.after is not None:
            reader.begin_at(paths, shown.after)
        return LogBatch(
            source=name, at=time.time(), lines=shown.lines, before=shown.before, after=shown.after
        )

    def _new_lines(
        self, name: str, reader: LogReader, paths: Callable[[], Sequence[Path]]
    ) -> tuple[list[bytes], int]:
        kept: deque[bytes] = deque(maxlen=LINES_MAX)
        total, read, moved = 0, 0, False
        while read < _LOOK_MAX_BYTES:
            block = reader.read()
            if not block:
                now = time.monotonic()
                if now - self._asked.get(name, 0.0) < ROTATION_S and not read and not moved:
                    break
                self._asked[name] = now
                moved, block = reader.advance(paths())
                if not moved and not block:
                    break
            read += len(block)
            count = block.count(b"\n")
            total += count
            if count > LINES_MAX:  # only the end of it can be shown: the rest is counted, not split
                block = block[-_tail_bytes(block) :]
            kept.extend(block.split(b"\n")[:-1])
        return list(kept), max(0, total - len(kept))


def _tail_bytes(block: bytes) -> int:
    """How many bytes at the end of `block` hold its last LINES_MAX lines."""
    position = len(block)
    for _ in range(LINES_MAX + 1):
        position = block.rfind(b"\n", 0, position)
        if position < 0:
            return len(block)
    return len(block) - position - 1


def _cursor(reader: LogReader) -> str | None:
    place = reader.place
    return None if place is None else str(Cursor(*place))


def _text(line: bytes) -> str:
    return line[:LINE_MAX_BYTES].decode(errors="replace")
