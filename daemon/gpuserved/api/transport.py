"""How a call of the control client gets to the daemon and back: one connection a call, and errors an operator can act on."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from gpuserved.api import errors, trust
from gpuserved.api.roots import SUN_PATH_MAX
from gpuserved.api.types import PROTOCOL_VERSION
from gpuserved.api.wire import (
    CHANGE_LIMIT_S,
    CLIENT_MARGIN_S,
    PREFIX,
    PROTOCOL_HEADER,
    READ_LIMIT_S,
    READ_ONLY_HEADER,
)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = READ_LIMIT_S + CLIENT_MARGIN_S
CHANGE_TIMEOUT_S = CHANGE_LIMIT_S + CLIENT_MARGIN_S
_ERROR_MAX_BYTES = 1024 * 1024
T = TypeVar("T")


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


class Transport:
    """Calls of one daemon. May be used from several threads."""

    def __init__(self, socket_path: Path, *, read_only: bool = False) -> None:
        """:param read_only: ask the daemon to refuse every change from this client."""
        self.socket_path = socket_path
        self.read_only = read_only
        self.daemon_protocol: int | None = None
        """What the daemon last said it speaks; None before the first call."""

    @property
    def notice(self) -> str | None:
        """A sentence where daemon and client are of different releases; None: they agree."""
        if self.daemon_protocol in {None, PROTOCOL_VERSION}:
            return None
        older = (
            "the daemon is older"
            if (self.daemon_protocol or 0) < PROTOCOL_VERSION
            else "this command is older"
        )
        return f"the daemon speaks protocol {self.daemon_protocol}, this command {PROTOCOL_VERSION}: {older}; restart it from one release"  # fmt: skip

    def _lines(self, path: str, timeout_s: float | None) -> Iterator[bytes]:
        connection, response = self._open("GET", path, None, timeout_s)
        try:
            while line := self._guard(response.readline, timeout_s):
                yield line
        finally:
            connection.close()

    def _call(
        self,
        method: str,
        path: str,
        answer: type[T],
        request: msgspec.Struct | None = None,
        timeout_s: float | None = None,
    ) -> T:
        body = None if method == "GET" else msgspec.json.encode(request) if request is not None else b""
        timeout_s = timeout_s or (READ_TIMEOUT_S if method == "GET" else CHANGE_TIMEOUT_S)
        connection, response = self._open(method, path, body, timeout_s)
        try:
            raw = self._guard(response.read, timeout_s)
        finally:
            connection.close()
        try:
            return msgspec.json.decode(raw, type=answer)
        except msgspec.DecodeError as error:
            raise errors.Internal(
                f"the daemon's answer cannot be read: {error}", self.notice or "see the daemon's log"
            ) from None

    def _open(
        self, method: str, path: str, body: bytes | None, timeout_s: float | None
    ) -> tuple[UnixConnection, http.client.HTTPResponse]:
        """Send a request; its response with good status."""
        if len(os.fsencode(self.socket_path)) > SUN_PATH_MAX:
            raise errors.Invalid(
                f"{self.socket_path}: a Unix socket's path has at most {SUN_PATH_MAX} bytes",
                "use a shorter path",
            )
        connection = UnixConnection(self.socket_path, READ_TIMEOUT_S if timeout_s is None else timeout_s)
        headers = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
        if self.read_only:
            headers[READ_ONLY_HEADER] = "1"
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = self._guard(
                lambda: _exchange(connection, method, PREFIX + path, body, headers), timeout_s
            )
            if timeout_s is None and connection.sock is not None:
                connection.sock.settimeout(None)
            self.daemon_protocol = _number(response.headers.get(PROTOCOL_HEADER))
            if response.status >= 400:
                _raise_error(self._guard(lambda: response.read(_ERROR_MAX_BYTES), timeout_s), response.status)
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _guard(self, call: Any, timeout_s: float | None) -> Any:
        """Run one step of a call; what the socket raises becomes what an operator can act on."""
        try:
            return call()
        except TimeoutError:
            raise errors.TimedOut(
                f"the daemon at {self.socket_path} did not answer within {timeout_s or CONNECT_TIMEOUT_S:g} s",
                "see its log: `gpuserve logs --daemon`, or daemon.log",
            ) from None
        except PermissionError:
            raise errors.Denied(
                f"no permission to use {self.socket_path}", "join the group gpuserve, or use sudo"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise errors.Unavailable(
                f"no daemon listens at {self.socket_path}", _start_hint(self.socket_path)
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unavailable(
                f"the daemon at {self.socket_path} hung up: {error or type(error).__name__}",
                "it may be restarting: try again",
            ) from None


def _exchange(
    connection: UnixConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """Send a request; the response's head."""
    connection.request(method, path, body, headers)
    return connection.getresponse()


def _start_hint(socket_path: Path) -> str:
    """How the daemon of this socket is started."""
    if str(socket_path).startswith("/run/gpuserve"):
        return "start it with `systemctl start gpuserved`"
    return "start one with `gpuserve up PROFILE`"


def _number(text: str | None) -> int | None:
    """A header's number; None: absent, or none."""
    return int(text) if text is not None and text.isdigit() else None


def _raise_error(raw: bytes, status: int) -> NoReturn:
    """Raise what an error's body says."""
    try:
        body = msgspec.json.decode(raw, type=errors.ErrorBody)
    except msgspec.DecodeError:
        raise errors.Internal(
            f"the daemon answered {status} without saying why", "see the daemon's log"
        ) from None
    raise errors.from_body(body)
