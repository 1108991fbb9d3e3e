"""The access log: a JSON object a line for each request that was served or refused. No content, no key."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

MAX_BYTES = 64 * 1024 * 1024
KEEP = 4
"""Older files beside the present one: 320 MiB at most, about 1.2 million requests."""
_BATCH_LINES = 256
"""Written together; the router's clock writes what waits every half second."""
_WAITING_MAX = 65536
"""Lines that wait while the disk refuses; more are dropped and counted."""

log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, gc=False):
    """What is left of a request that is over: one line. Times in seconds; None: it did not come to that."""

    time: float
    """When the request was whole, Unix."""
    request_id: str
    peer: str
    method: str
    path: str
    """Without the query."""
    model: str | None
    replica: str | None
    status: int
    """499: the client left first. A stream that was cut has the status it began with, and `cut`."""
    bytes: int
    """Of the answer's body as it was sent on, framing included."""
    queue_s: float | None
    """Until it was sent to the replica that answered."""
    ttft_s: float | None
    """Until the first bytes of the answer's body."""
    duration_s: float
    replays: int
    cut: bool
    """The replica died in the middle."""
    key: str | None
    """The API key's name."""


class AccessLog:
    """Gathers lines and writes them in batches to a file under a cap."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        self.path = path
        self.dropped = 0
        """Lines the disk did not take."""
        self._max_bytes = max_bytes
        self._keep = keep
        self._waiting: list[Record] = []
        self._encoder = msgspec.json.Encoder()
        self._fd: int | None = None
        self._size = 0
        self._complained = False

    def add(self, record: Record) -> None:
        """A request is over."""
        self._waiting.append(record)
        if len(self._waiting) >= _BATCH_LINES and not self._complained:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Never raises: a log that cannot be written costs no request."""
        if not self._waiting:
            return
        try:
            self._write(self._encoder.encode_lines(self._waiting))
        except OSError as error:
            if not self._complained:
                log.warning("the access log cannot be written: %s", error)
            self._complained = True
            self._close()
            if len(self._waiting) > _WAITING_MAX:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            return
        self._waiting.clear()
        if self._complained:
            self._complained = False
            log.warning("the access log is written again; %d lines are lost", self.dropped)

    def _write(self, data: bytes) -> None:
        if self._fd is not None and self._size + len(data) > self._max_bytes:
            self._rotate()
        if self._fd is None:
            self._open()
        assert self._fd is not None
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            os.ftruncate(self._fd, self._size)  # half a batch is no batch: all of it is written again
            raise
        self._size += done

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self._close()
        for number in range(self._keep - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.rename(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.rename(self.path.with_name(f"{self.path.name}.1"))

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Write what waits, for the last time."""
        self.flush()
        self._close()
