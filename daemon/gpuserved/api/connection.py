"""One HTTP/1.1 exchange over a Unix socket, for the control client."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import NoReturn

import msgspec

from gpuserved.api import errors, trust

CONNECT_TIMEOUT_S = 5.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 to a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("gpuserved", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect, see who listens there, then wait for answers as long as the call allows.

        :raises Denied: somebody else may have put the socket there.
        """
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(os.fspath(self._path))
        _, peer, _ = trust.credentials(self.sock)
        trust.expect_trusted(self._path, peer, uid=os.getuid())
        self.sock.settimeout(self._timeout_s)


def exchange(
    connection: UnixConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """Send a request; the response's head."""
    connection.request(method, path, body, headers)
    return connection.getresponse()


def start_hint(socket_path: Path) -> str:
    """How the daemon of this socket is started."""
    if str(socket_path).startswith("/run/gpuserve"):
        return "start it with `systemctl start gpuserved`"
    return "start one with `gpuserve up PROFILE`"


def number(text: str | None) -> int | None:
    """A header's number; None: absent, or none."""
    return int(text) if text is not None and text.isdigit() else None


def raise_error(raw: bytes, status: int) -> NoReturn:
    """Raise what an error's body says."""
    try:
        body = msgspec.json.decode(raw, type=errors.ErrorBody)
    except msgspec.DecodeError:
        raise errors.Internal(
            f"the daemon answered {status} without saying why", "see the daemon's log"
        ) from None
    raise errors.from_body(body)
