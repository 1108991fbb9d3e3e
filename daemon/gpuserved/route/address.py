"""Upstreams as they are typed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Invalid

_FORM = "write http://HOST:PORT or unix:/PATH, as in http://10.0.0.5:8000"
_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[^?#]*)?")
_SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path that the kernel takes (unix(7))."""


@dataclass(frozen=True)
class Address:
    """One server."""

    id: str
    """As logs, metrics and `x-gpuserve-replica` show it."""
    address: str
    """As the routing table wants it: `tcp:HOST:PORT` or `unix:PATH`."""


def parse_upstream(text: str) -> Address:
    """One URL. A trailing `/v1` is what clients are given and is taken off.

    :raises Invalid: anything else, with what to write.
    """
    if text.startswith("unix:"):
        path = text[len("unix:") :].removeprefix("//")
        if not path.startswith("/") or len(path.encode()) > _SOCKET_PATH_MAX:
            raise Invalid(f"{text!r} is no absolute path of a socket, 107 bytes at most", _FORM)
        return Address(f"unix:{path}", f"unix:{path}")
    if text.startswith("https://"):
        raise Invalid(
            f"{text!r}: upstreams are reached without TLS",
            "put a TLS tunnel beside the router, or use http://",
        )
    found = _URL.fullmatch(text)
    if found is None or (found[3] or "/").rstrip("/") not in {"", "/v1"}:
        raise Invalid(f"{text!r} is not an upstream", _FORM)
    port = int(found[2] or 80)
    if not 1 <= port <= 65535:
        raise Invalid(f"{text!r}: there is no port {port}", _FORM)
    return Address(f"{found[1]}:{port}", f"tcp:{found[1]}:{port}")


def parse_upstreams(urls: Iterable[str], file: Path | None) -> list[Address]:
    """All upstreams of the command line and of a file with one a line (`#` begins a comment), in that order.

    :raises Invalid: naming the file's line; none at all; or one twice.
    """
    found: dict[str, Address] = {}
    for where, text in (*(("", url) for url in urls), *_lines(file)):
        try:
            one = parse_upstream(text)
        except Invalid as error:
            raise Invalid(where + error.message, error.hint) from None
        if one.id in found:
            raise Invalid(f"{where}{text} is there twice", "name every upstream once")
        found[one.id] = one
    if not found:
        raise Invalid("no upstream is named", "gpuserve route --upstream http://HOST:PORT")
    return list(found.values())


def _lines(file: Path | None) -> list[tuple[str, str]]:
    if file is None:
        return []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not plain text"
        raise Invalid(f"{file}: cannot be read: {reason}", "check --upstreams") from None
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1))
    return [(f"{file}:{number}: ", text) for number, text in stripped if text]
