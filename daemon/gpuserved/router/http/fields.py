"""Header lines, checked against the strict grammar (RFC 9112 section 5).

Clients send the same few lines again and again: a line that was found good is remembered with all that is known of it, so
that most heads are read by one look-up a line. Lines that hold secrets, or that are new each time, are not remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_REMEMBERED_MAX = 512
_REMEMBERED_LINE_MAX_BYTES = 512
"""With the bound above: a quarter of a megabyte of lines at most, whoever sends them."""
_NOT_REMEMBERED = frozenset({
    b"authorization", b"x-api-key", b"cookie", b"set-cookie", b"proxy-authorization", b"x-request-id", b"traceparent",
    b"idempotency-key",
})  # fmt: skip
_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"http2-settings",
})  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"x-request-id", b"forwarded",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip",
}  # fmt: skip
_NOT_RETURNED = _HOP_BY_HOP | {b"content-length", b"x-request-id", b"x-gpuserve-replica"}


UNDERSCORE = b"_"
"""The role of a header with `_` in its name: some servers take it for `-`, so it is dropped from requests."""
_WITH_ROLE = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"content-type",
    b"content-encoding",
})  # fmt: skip


class Field(msgspec.Struct, frozen=True, gc=False):
    """One header line."""

    name: bytes
    """Lower case."""
    value: bytes
    role: bytes
    """Its name, where the router itself goes by it; `UNDERSCORE`; empty: it means nothing to us."""
    forwarded: bytes
    """The line as a replica gets it, CRLF included; empty: it does not."""
    returned: bytes
    """The line as a client gets it; empty: it does not."""


class BadField(ValueError):
    """Says why a line is not the strict grammar."""


_remembered: dict[bytes, Field] = {}


def _read(line: bytes) -> Field:
    found = _LINE.fullmatch(line)
    if found is None:
        if b"\n" in line or b"\r" in line:
            raise BadField("a line end is not CRLF")
        _, colon, value = line.partition(b":")
        if colon and _LINE.fullmatch(b"x:" + value) is None:
            raise BadField("control characters")
        raise BadField("a header line is malformed")
    name, value = found[1].lower(), found[2].strip(b" \t")
    wire = name + b": " + value + b"\r\n"
    role = UNDERSCORE if b"_" in name else name if name in _WITH_ROLE else b""
    field = Field(
        name, value, role, b"" if name in _NOT_FORWARDED else wire, b"" if name in _NOT_RETURNED else wire
    )
    if len(line) <= _REMEMBERED_LINE_MAX_BYTES and name not in _NOT_REMEMBERED:
        if len(_remembered) >= _REMEMBERED_MAX:
            _remembered.clear()
        _remembered[line] = field
    return field


Roles = dict[bytes, list[bytes]]
"""The values of the headers that mean something to the router, in the order they came."""


def read_fields(lines: Iterable[bytes]) -> tuple[list[Field], Roles]:
    """All fields, and the values of those with a role.

    :param lines: without their CRLF.
    :raises BadField: one of them is not the strict grammar.
    """
    known = _remembered.get
    fields: list[Field] = []
    roles: Roles = {}
    for line in lines:
        field = known(line) or _read(line)
        fields.append(field)
        if field.role:
            if field.role in roles:
                roles[field.role].append(field.value)
            else:
                roles[field.role] = [field.value]
    return fields, roles


def tokens(values: Iterable[bytes]) -> list[bytes]:
    """The members of comma-separated lists, lower case."""
    return [token.strip(b" \t").lower() for value in values for token in value.split(b",")]
