"""Heads of requests and responses: parsed, checked against the strict grammar, and written anew.

Whatever two HTTP parsers might read in two ways is refused here (RFC 9112 sections 2.2, 5, 6.1, 11.2).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from gpuserved.router.http import errors
from gpuserved.router.http.errors import REASONS
from gpuserved.router.http.fields import UNDERSCORE, BadField, Field, Roles, read_fields, tokens

HEAD_MAX_BYTES = 32 * 1024
HEADERS_MAX = 100
RESPONSE_HEAD_MAX_BYTES = 64 * 1024

Headers = list[tuple[bytes, bytes]]

_PATH_CHARS = rb"[A-Za-z0-9._~!$&'()*+,;=:@/-]*"
_QUERY_CHARS = rb"[A-Za-z0-9._~!$&'()*+,;=:@/?-]*"
_ORIGIN_FORM = (
    rb"/" + _PATH_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _PATH_CHARS + rb")*"
    rb"(?:\?" + _QUERY_CHARS + rb"(?:%[0-9A-Fa-f]{2}" + _QUERY_CHARS + rb")*)?"
)
"""RFC 3986 sections 3.3 and 3.4, written so that no input makes the match backtrack."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")
_REQUEST_LINE = re.compile(rb"([A-Z]{3,16}) (" + _ORIGIN_FORM + rb") HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_LENGTH_DIGITS_MAX = 18
_LENGTH = re.compile(rb"[0-9]{1,%d}" % _LENGTH_DIGITS_MAX)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_REASONS = {status: reason.encode() for status, reason in REASONS.items()}
_NO_BODY = frozenset({204, 304})
_KEEP_ALIVE = [b"keep-alive"]
_NOTHING: frozenset[bytes] = frozenset()


class BadAnswer(Exception):
    """A replica's head or framing cannot be trusted."""


class RequestHead(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One request's head, without the headers that have `_` in their names."""

    method: str
    target: bytes
    path: str
    query: str
    http10: bool
    fields: Sequence[Field]
    named: frozenset[bytes]
    """What the client listed in Connection: headers of that name are meant for us alone."""
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    websocket: bool

    def get(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for field in self.fields:
            if field.name == name:
                return field.value
        return None

    def all(self, name: bytes) -> list[bytes]:
        """All headers of that lower-case name."""
        return [field.value for field in self.fields if field.name == name]


class ResponseHead(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One response's head. `content_length` None and not `chunked`: the body ends with the connection."""

    status: int
    reason: bytes
    fields: Sequence[Field]
    named: frozenset[bytes]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    sse: bool


def _framing(roles: Roles, *, http10: bool) -> tuple[int | None, bool]:
    """(content length, chunked).

    :raises BadField: says why the framing is ambiguous.
    """
    lengths = roles.get(b"content-length")
    codings = roles.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise BadField("both Content-Length and Transfer-Encoding")
        if http10 or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise BadField("Transfer-Encoding is not exactly `chunked`")
        return None, True
    if lengths is None:
        return None, False
    if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise BadField("Content-Length is not one number")
    return int(lengths[0]), False


def _valid_host(value: bytes) -> bool:
    """A name, an IPv4 or a bracketed IPv6 address, and perhaps a port (RFC 3986 section 3.2.2, narrowed to what
    names a machine).
    """
    found = _HOST.fullmatch(value)
    if found is None:
        return False
    if found[1] is not None:
        try:
            ipaddress.IPv6Address(found[1].decode("ascii"))
        except ValueError:
            return False
    return found[2] is None or 0 < int(found[2]) <= 65535


def _check_host(hosts: list[bytes] | None, *, http10: bool) -> None:
    if hosts is None:
        if http10:
            return
        raise BadField("exactly one Host header is expected")
    if len(hosts) > 1:
        raise BadField("exactly one Host header is expected")
    if not _valid_host(hosts[0]):
        raise BadField("the Host header is malformed")


def _connection(values: list[bytes] | None, *, http10: bool) -> tuple[bool, frozenset[bytes]]:
    """(keeps alive, what else is listed: options, and headers meant for us alone)."""
    if values is None:
        return not http10, _NOTHING
    listed = tokens(values)
    keeps = b"close" not in listed and (not http10 or b"keep-alive" in listed)
    return keeps, _NOTHING if listed == _KEEP_ALIVE else frozenset(listed)


def _expects_continue(values: list[bytes] | None) -> bool:
    if values is None:
        return False
    if [value.lower() for value in values] != [b"100-continue"]:
        raise errors.bad_expectation()
    return True


def parse_request(raw: bytes) -> RequestHead:
    """The head of a request; `raw` ends with its empty line.

    :raises HttpError: 400, 417 or 431.
    """
    first, *lines = raw[:-4].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise errors.bad_request("Malformed request line (a path and HTTP/1.1 are expected).")
    if len(lines) > HEADERS_MAX:
        raise errors.head_too_large()
    method, target, minor = line.groups()
    http10 = minor == b"0"
    try:
        fields, roles = read_fields(lines)
        _check_host(roles.get(b"host"), http10=http10)
        length, chunked = _framing(roles, http10=http10)
    except BadField as error:
        raise errors.bad_request(f"Malformed request: {error}.", "malformed_request") from None
    if UNDERSCORE in roles:
        fields = [field for field in fields if field.role != UNDERSCORE]
    path, _, query = target.decode("ascii").partition("?")
    keep_alive, named = _connection(roles.get(b"connection"), http10=http10)
    return RequestHead(
        method=method.decode("ascii"), target=target, path=path, query=query, http10=http10, fields=fields,
        named=named, content_length=length, chunked=chunked, keep_alive=keep_alive,
        expects_continue=_expects_continue(roles.get(b"expect")) and not http10,
        websocket=b"upgrade" in named and tokens(roles.get(b"upgrade", [])) == [b"websocket"],
    )  # fmt: skip


def parse_response(raw: bytes) -> ResponseHead:
    """The head of a response; `raw` ends with its empty line.

    :raises BadAnswer: it is not HTTP/1.x as we trust it.
    """
    first, *lines = raw[:-4].split(b"\r\n")
    line = _STATUS_LINE.fullmatch(first)
    if line is None:
        raise BadAnswer("no status line")
    minor, code, reason = line.groups()
    http10 = minor == b"0"
    status = int(code)
    try:
        fields, roles = read_fields(lines)
        length, chunked = _framing(roles, http10=http10)
    except BadField as error:
        raise BadAnswer(str(error)) from None
    if status in _NO_BODY:
        length, chunked = 0, False
    keep_alive, named = _connection(roles.get(b"connection"), http10=http10)
    kinds = roles.get(b"content-type")
    sse = kinds is not None and status == 200 and b"content-encoding" not in roles and _is_sse(kinds[0])
    return ResponseHead(
        status=status, reason=reason or b"", fields=fields, named=named, content_length=length, chunked=chunked,
        keep_alive=keep_alive and (chunked or length is not None), sse=sse,
    )  # fmt: skip


def _is_sse(kind: bytes) -> bool:
    return kind.lower().startswith(b"text/event-stream")


Head = TypeVar("Head", RequestHead, ResponseHead)


class HeadMemo(Generic[Head]):
    """Parses heads; one that differs from the last in nothing but the number after `separator` is not parsed again.

    That number is the only thing a parser makes of the bytes that differ: the head before was accepted, so it has one such
    line, here, and no other length. A connection's memo dies with it, and so does what it holds of keys.
    """

    __slots__ = ("_after", "_before", "_head", "_length", "_parse", "_separator")

    def __init__(self, parse: Callable[[bytes], Head], separator: bytes) -> None:
        """:param separator: CRLF, name, colon and space of the length's line as most peers write it."""
        self._parse: Callable[[bytes], Head] = parse
        self._separator = separator
        self._before = self._length = self._after = b""
        self._head: Head | None = None

    def read(self, raw: bytes) -> Head:
        """As `parse`, which see. `raw` ends with the head's empty line."""
        before, _, rest = raw.partition(self._separator)
        length, _, after = rest.partition(b"\r\n")
        head = self._head
        if head is not None and before == self._before and after == self._after:
            if length == self._length:
                return head
            if head.content_length and length.isdigit() and len(length) <= _LENGTH_DIGITS_MAX:
                fresh: Head = msgspec.structs.replace(
                    head, content_length=int(length), fields=_with_length(head.fields, length)
                )
                self._length, self._head = length, fresh
                return fresh
        head = self._parse(raw)
        self._before, self._length, self._after, self._head = before, length, after, head
        return head


def _with_length(fields: Sequence[Field], length: bytes) -> list[Field]:
    return [
        Field(field.name, length, field.role, b"", b"") if field.role == b"content-length" else field
        for field in fields
    ]


def valid_request_id(value: bytes | None) -> bool:
    """May a client's X-Request-Id be used as it is?"""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


def upstream_request(
    head: RequestHead,
    *,
    target: bytes,
    content_length: int | None,
    request_id: bytes,
    peer: bytes,
    upgrade: bool = False,
) -> bytes:
    """The head a replica gets. What the client listed in Connection goes, our own headers come last. HEAD becomes GET, whose answer's
    body is not passed on: engines know no HEAD.

    :param upgrade: ask for a WebSocket.
    """
    named = head.named
    if named:
        passed = b"".join([field.forwarded for field in head.fields if field.name not in named])
    else:
        passed = b"".join([field.forwarded for field in head.fields])
    length = b"" if content_length is None else b"content-length: %d\r\n" % content_length
    hop = b"connection: upgrade\r\nupgrade: websocket\r\n" if upgrade else b""
    method = "GET" if head.method == "HEAD" else head.method
    return b"%b %b HTTP/1.1\r\nhost: localhost\r\n%b%b%bx-request-id: %b\r\nx-forwarded-for: %b\r\n\r\n" % (
        method.encode(), target, passed, hop, length, request_id, peer,
    )  # fmt: skip


def client_response(
    head: ResponseHead, *, framing: bytes, request_id: bytes, replica: bytes, close: bool
) -> bytes:
    """The head a client gets for a replica's answer.

    :param framing: the Content-Length, Transfer-Encoding or Upgrade line(s), CRLF included; empty: ends by close.
    """
    named = head.named
    if named:
        returned = b"".join([field.returned for field in head.fields if field.name not in named])
    else:
        returned = b"".join([field.returned for field in head.fields])
    return b"HTTP/1.1 %d %b\r\n%b%bx-request-id: %b\r\nx-gpuserve-replica: %b\r\n%b\r\n" % (
        head.status, _REASONS.get(head.status) or head.reason, returned, framing, request_id, replica,
        b"connection: close\r\n" if close else b"",
    )  # fmt: skip


def own_response(
    status: int, headers: Headers, body: bytes, *, close: bool, head_only: bool = False
) -> bytes:
    """A whole answer of the router itself.

    :param head_only: to HEAD: the length says what GET would bring (RFC 9110 section 9.3.2).
    """
    out = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS[status])]
    for name, value in headers:
        out += (name, b": ", value, b"\r\n")
    out.append(b"content-length: %d\r\n" % len(body))
    out += (b"connection: close\r\n\r\n" if close else b"\r\n", b"" if head_only else body)
    return b"".join(out)
