"""The public port: one listening socket that outlives supervisors and routers."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import psutil

from gpuserved.api.errors import Invalid, Refused

BACKLOG = 4096
"""Connections the kernel queues while a new router starts; somaxconn's default on current kernels."""


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT` or `PORT` (loopback).

    :raises Invalid: anything else.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise Invalid(
            f"{text!r} is not an address to listen on", hint="write HOST:PORT, for example 127.0.0.1:8000"
        )
    return host, int(port)


@dataclass(frozen=True)
class Resolved:
    """An address as the kernel takes it: where `bind` binds."""

    family: int
    where: tuple[Any, ...]
    """Host and port; more of version 6."""


def resolve(address: str) -> Resolved:
    """Where an address to listen on is.

    :raises Invalid: it is none of this machine.
    """
    host, port = parse_address(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise Invalid(
            f"cannot listen on {address}: {error.strerror}", hint="use an address of this machine"
        ) from None
    return Resolved(family, where)


def is_at(listener: socket.socket, wanted: Resolved) -> bool:
    """Is it bound there? Port 0 is any port."""
    host, port = listener.getsockname()[:2]
    return listener.family == wanted.family and host == wanted.where[0] and wanted.where[1] in {0, port}


def bind(address: str) -> socket.socket:
    """Bind and listen.

    :raises Invalid: it is no address of this machine.
    :raises Refused: the port is taken; says by whom where this user may know.
    """
    wanted = resolve(address)
    listener = socket.socket(wanted.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(wanted.where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Refused(
            f"cannot listen on {address}: {error.strerror}{_held(wanted.where[1])}",
            hint="stop that program, or choose another port with --listen HOST:PORT",
        ) from None
    listener.setblocking(False)
    return listener


def _held(port: int) -> str:
    holder = held_by(port)
    return f" (held by {holder})" if holder else ""


def held_by(port: int) -> str | None:
    """`PID 12: python3 -m http.server` for who listens on a TCP port; None: nobody, or nobody whom this user can see."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return _describe(connection.pid)
    return None


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        command = " ".join(psutil.Process(pid).cmdline())[:80]
    except psutil.Error:
        return f"PID {pid}"
    return f"PID {pid}: {command}"


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """`http://HOST:PORT` or `https://HOST:PORT`: a URL a client on this machine can use; a wildcard address is shown as loopback."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def is_public(listener: socket.socket) -> bool:
    """True where others than this machine can reach it."""
    host = str(listener.getsockname()[0])
    return not (host.startswith("127.") or host == "::1")
