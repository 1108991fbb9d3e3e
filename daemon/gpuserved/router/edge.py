"""Heads of requests and responses: parsed, checked against the strict grammar, and written anew.

Whatever two HTTP parsers might read in two ways is refused here (RFC 9112 sections 2.2, 5, 6.1, 11.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools

from gpuserved.router import errors
from gpuserved.router.errors import REASONS

HEAD_MAX_BYTES = 32 * 1024
HEADERS_MAX = 100
RESPONSE_HEAD_MAX_BYTES = 64 * 1024

Headers = list[tuple[bytes, bytes]]

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REQUEST_LINE = re.compile(rb"([A-Z]{3,16}) (/[!\"$-~]*) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([ -~\x80-\xff]*))?\r\n")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"http2-settings",
})  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"x-request-id", b"forwarded",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip",
}  # fmt: skip
_NOT_RETURNED = _HOP_BY_HOP | {b"content-length", b"x-request-id", b"x-gpuserve-replica"}


class BadAnswer(Exception):
    """A replica's head or framing cannot be trusted."""


@dataclass(frozen=True)
class RequestHead:
    """One request's head. Header names are lower case; those with `_` are gone."""

    method: str
    target: bytes
    path: str
    query: str
    http10: bool
    headers: Headers
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    websocket: bool

    def get(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None


@dataclass(frozen=True)
class ResponseHead:
    """One response's head. `content_length` None and not `chunked`: the body ends with the connection."""

    status: int
    reason: bytes
    headers: Headers
    content_length: int | None
    chunked: bool
    keep_alive: bool
    sse: bool


class _Fields:
    """httptools' callbacks."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))


def _well_formed(raw: bytes, first_line_end: int) -> str | None:
    """Why these lines are not the strict grammar; None: they are."""
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        return "a line end is not CRLF"
    if _CONTROL.search(raw):
        return "control characters"
    at = first_line_end
    last = len(raw) - 2
    while at < last:
        found = _FIELD.match(raw, at)
        if found is None:
            return "a header line is malformed"
        at = found.end()
    return None


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    return [
        token.strip(b" \t").lower() for known, value in headers if known == name for token in value.split(b",")
    ]  # fmt: skip


def _framing(headers: Headers, *, http10: bool) -> tuple[int | None, bool]:
    """(content length, chunked).

    :raises ValueError: says why the framing is ambiguous.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise ValueError("both Content-Length and Transfer-Encoding")
        if http10 or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise ValueError("Transfer-Encoding is not exactly `chunked`")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise ValueError("Content-Length is not one number")
    return int(lengths[0]), False


def _keeps_alive(headers: Headers, *, http10: bool) -> bool:
    tokens = _tokens(headers, b"connection")
    return b"close" not in tokens and (not http10 or b"keep-alive" in tokens)


def parse_request(raw: bytes) -> RequestHead:
    """The head of a request; `raw` ends with its empty line.

    :raises HttpError: 400, 417 or 431.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise errors.bad_request("Malformed request line (a path and HTTP/1.1 are expected).")
    if raw.count(b"\n") > HEADERS_MAX + 2:
        raise errors.head_too_large()
    wrong = _well_formed(raw, line.end())
    fields = _Fields()
    if wrong is None:
        try:
            httptools.HttpRequestParser(fields).feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            wrong = "the head is malformed"
    http10 = line[3] == b"0"
    hosts = [value for name, value in fields.headers if name == b"host"]
    if wrong is None and (len(hosts) > 1 or (not hosts and not http10)):
        wrong = "exactly one Host header is expected"
    if wrong is None and hosts and not _HOST.fullmatch(hosts[0]):
        wrong = "the Host header is malformed"
    try:
        length, chunked = _framing(fields.headers, http10=http10)
    except ValueError as error:
        wrong = wrong or str(error)
        length, chunked = None, False
    if wrong is not None:
        raise errors.bad_request(f"Malformed request: {wrong}.", "malformed_request")
    target = line[2]
    path, _, query = target.decode("ascii").partition("?")
    upgrade = _tokens(fields.headers, b"upgrade") == [b"websocket"]
    expect = [value.lower() for name, value in fields.headers if name == b"expect"]
    if expect and expect != [b"100-continue"]:
        raise errors.HttpError(
            417, "Only `Expect: 100-continue` is known.", kind="invalid_request_error", code="expectation_failed"
        )  # fmt: skip
    return RequestHead(
        method=line[1].decode("ascii"), target=target, path=path, query=query, http10=http10,
        headers=[(n, v) for n, v in fields.headers if b"_" not in n], content_length=length, chunked=chunked,
        keep_alive=_keeps_alive(fields.headers, http10=http10), expects_continue=bool(expect) and not http10,
        websocket=upgrade and b"upgrade" in _tokens(fields.headers, b"connection"),
    )  # fmt: skip


def parse_response(raw: bytes) -> ResponseHead:
    """The head of a response; `raw` ends with its empty line.

    :raises BadAnswer: it is not HTTP/1.x as we trust it.
    """
    line = _STATUS_LINE.match(raw)
    if line is None:
        raise BadAnswer("no status line")
    wrong = _well_formed(raw, line.end())
    if wrong is not None:
        raise BadAnswer(wrong)
    fields = _Fields()
    try:
        httptools.HttpResponseParser(fields).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadAnswer("the head is malformed") from error
    http10 = line[1] == b"0"
    status = int(line[2])
    try:
        length, chunked = _framing(fields.headers, http10=http10)
    except ValueError as error:
        raise BadAnswer(str(error)) from error
    if status in {204, 304}:
        length, chunked = 0, False
    kinds = [value for name, value in fields.headers if name == b"content-type"]
    encoded = any(name == b"content-encoding" for name, _ in fields.headers)
    return ResponseHead(
        status=status, reason=line[3] or b"", headers=fields.headers, content_length=length, chunked=chunked,
        keep_alive=_keeps_alive(fields.headers, http10=http10) and (chunked or length is not None),
        sse=status == 200 and not encoded and bool(kinds) and kinds[0].lower().startswith(b"text/event-stream"),
    )  # fmt: skip


def valid_request_id(value: bytes | None) -> bool:
    """May a client's X-Request-Id be used as it is?"""
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


def upstream_request(
    head: RequestHead, *, target: bytes, content_length: int | None, request_id: bytes, peer: bytes
) -> bytes:
    """The head a replica gets. What the client listed in Connection goes, our own headers come last."""
    named = _tokens(head.headers, b"connection")
    out = [head.method.encode(), b" ", target, b" HTTP/1.1\r\nhost: localhost\r\n"]
    for name, value in head.headers:
        if name not in _NOT_FORWARDED and name not in named:
            out += (name, b": ", value, b"\r\n")
    if head.websocket:
        out.append(b"connection: upgrade\r\nupgrade: websocket\r\n")
    if content_length is not None:
        out.append(b"content-length: %d\r\n" % content_length)
    out += (b"x-request-id: ", request_id, b"\r\nx-forwarded-for: ", peer, b"\r\n\r\n")
    return b"".join(out)


def client_response(
    head: ResponseHead, *, framing: bytes, request_id: bytes, replica: bytes, close: bool
) -> bytes:
    """The head a client gets for a replica's answer.

    :param framing: the Content-Length, Transfer-Encoding or Upgrade line(s), CRLF included; empty: ends by close.
    """
    named = _tokens(head.headers, b"connection")
    reason = REASONS.get(head.status, "").encode() or head.reason
    out = [b"HTTP/1.1 %d " % head.status, reason, b"\r\n"]
    for name, value in head.headers:
        if name not in _NOT_RETURNED and name not in named:
            out += (name, b": ", value, b"\r\n")
    out += (framing, b"x-request-id: ", request_id, b"\r\nx-gpuserve-replica: ", replica, b"\r\n")
    out.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(out)


def own_response(status: int, headers: Headers, body: bytes, *, close: bool) -> bytes:
    """A whole answer of the router itself."""
    out = [b"HTTP/1.1 %d %s\r\n" % (status, REASONS[status].encode())]
    for name, value in headers:
        out += (name, b": ", value, b"\r\n")
    out.append(b"content-length: %d\r\n" % len(body))
    out += (b"connection: close\r\n\r\n" if close else b"\r\n", body)
    return b"".join(out)
