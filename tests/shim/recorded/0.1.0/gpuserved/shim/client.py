"""One connection to the shim's socket. It never blocks, and one that misbehaves is dropped alone."""

from __future__ import annotations

import os
import socket
import sys

from gpuserved.shim.wire import BrokenLine, LineBuffer, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_PENDING_BYTES = 128 * 1024  # answers and events a client has not read
_READ_BYTES = 64 * 1024
KEEPERS = {"supervisor", "router"}


class Gone(Exception):
    """The peer closed, broke the rules, or does not read: drop it."""


def allowed(peer: socket.socket) -> bool:
    """True for this user and for root; the socket's mode says the same, this holds even where the mode was changed."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    return int.from_bytes(credentials[4:8], sys.byteorder) in {0, os.geteuid()}


def _rights(fd: int | None) -> list[tuple[int, int, bytes]]:
    if fd is None:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]


class Client:
    """A connection, who it says it is, and what it has yet to be sent."""

    __slots__ = ("_lines", "_out", "_pending_bytes", "socket", "watching", "who")

    def __init__(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self.socket = peer
        self.who: str | None = None
        self.watching = False
        self._lines = LineBuffer()
        self._out: list[tuple[bytes, int | None]] = []
        self._pending_bytes = 0

    @property
    def keeps(self) -> bool:
        """True for a connection that keeps a replica from being an orphan."""
        return self.who in KEEPERS

    @property
    def waiting(self) -> bool:
        """True while something could not be sent yet."""
        return bool(self._out)

    def receive(self) -> list[dict[str, Any]]:
        """The requests that arrived.

        :raises Gone: drop it.
        """
        try:
            data = self.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise Gone(str(error)) from None
        if not data:
            raise Gone("closed")
        try:
            return [decode(line) for line in self._lines.feed(data)]
        except BrokenLine as error:
            raise Gone(str(error)) from None

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send now what can be sent, keep the rest in order.

        :raises Gone: it does not read; drop it.
        """
        line = encode(message)
        self._out.append((line, fd))
        self._pending_bytes += len(line)
        self.flush()
        if self._pending_bytes > MAX_PENDING_BYTES:
            raise Gone("does not read")

    def flush(self) -> None:
        """Send more of what waits.

        :raises Gone: drop it.
        """
        while self._out:
            data, fd = self._out[0]
            try:
                sent = self.socket.sendmsg([data], _rights(fd))
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Gone(str(error)) from None
            self._pending_bytes -= sent
            if sent == len(data):
                self._out.pop(0)
            else:
                self._out[0] = (data[sent:], None)  # the descriptor went with the first byte
