"""The edge against a second, independent HTTP parser: what we accept h11 reads alike, and so it reads what we forward."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import h11
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.router.corpus import BAD, cases

from gpuserved.core.routes import Kind, Match, Route
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.head import Headers, upstream_request
from gpuserved.router.http.request_reader import RequestReader, Whole

_ANYTHING = Match(Route(Kind.JSON))


class _Everything:
    def screen(self, head: object) -> Match:
        return _ANYTHING

    def body_max_bytes(self) -> int:
        return 1 << 20


@dataclass
class Reading:
    """A request as one parser sees it."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    rest: bytes


def ours(wire: bytes, cuts: list[int]) -> tuple[Whole, bytes] | None:
    """The first request and the unread bytes; None: refused, or not whole."""
    reader = RequestReader(_Everything())
    edges = [0, *sorted(cut for cut in set(cuts) if cut < len(wire)), len(wire)]
    try:
        for start, end in pairwise(edges):
            reader.feed(wire[start:end])
            while True:
                whole = reader.advance(0.0)
                if whole is not None:
                    return whole, reader.take_rest() + wire[end:]
                if not reader.has_more:
                    break
    except HttpError:
        return None
    return None


def theirs(wire: bytes) -> Reading | None:
    """The same for h11; None: refused, or not whole."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(wire)
    request: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                rest = connection.trailing_data[0]
                return Reading(request.method, request.target, list(request.headers), body, rest)
            else:
                return None
    except h11.RemoteProtocolError:
        return None


_TARGETS = st.sampled_from([
    *["/v1/chat/completions"] * 12, "/", "/v1/chat/completions", "/a?b=%20c", "//", "/a;b", "*", "http://a/", "/a#b", "/%4", "/\xfc", "/a b", '/"', "/[a]", "/a\\b",
])  # fmt: skip
_NAMES = st.sampled_from([
    *["X-A", "Connection", "x-b"] * 8, "X_A", "Accept", "Connection", "Expect", "Upgrade", "X-Forwarded-For", "X-Request-Id", "Trailer", "TE", "Keep-Alive",
    "Host", "Content-Length", "Transfer-Encoding", "X A", "", "Content-Length ",
])  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from(
        [*["a", "X-A, close"] * 12, "a:80", "0", "3", "003", "+3", "3, 3", "chunked", "gzip, chunked", "identity", "close", "keep-alive", "x-a, host",
         "100-continue", "websocket", "upgrade", "", "\x00", "\x80", "a\x1fb", "a\tb", "a\x0bb"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=8),
)  # fmt: skip
_SPACES = st.sampled_from(["", " ", "\t", " \t "])
_FRAMED = st.sampled_from([
    ("", ""), ("", "rest"), ("Content-Length: 3\r\n", "abc"), ("content-length:003\r\n", "abcGET / HTTP/1.1\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"), ("Content-Length: 0\r\n", "x"),
    ("transfer-encoding: Chunked\r\n", "3;x=y\r\nabc\r\n02\r\nde\r\n000\r\nT: 1\r\n\r\nrest"),
    ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n0\r\n\r\n"), ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "abc"),
])  # fmt: skip
_SPLINTERS = st.sampled_from(
    [
        b"",
        b"\n",
        b"\r",
        b"\r\n",
        b" ",
        b"\t",
        b"\x00",
        b":",
        b"0",
        b"+",
        b";",
        b",",
        b"\xff",
        b"3",
        b"Host: b\r\n",
        b"\r\n ",
        b"_",
    ]
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Requests that are right or nearly so: up to two splinters in a good one."""
    method, version = (
        draw(st.sampled_from(["POST", "GET", "PUT"])),
        draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"])),
    )
    header = st.builds("{}:{}{}{}\r\n".format, _NAMES, _SPACES, _VALUES, _SPACES)
    lines = draw(st.lists(header, max_size=4))
    framing, body = draw(_FRAMED)
    lines.insert(draw(st.integers(0, len(lines))), framing)
    text = f"{method} {draw(_TARGETS)} HTTP/{version}\r\nHost: a\r\n{''.join(lines)}\r\n{body}"
    wire = text.encode("latin-1")
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(wire)))
        wire = wire[:at] + draw(_SPLINTERS) + wire[at + draw(st.integers(0, 2)) :]
    return wire


def _agree(wire: bytes, cuts: list[int]) -> None:
    mine = ours(wire, cuts)
    if mine is None:
        return
    whole, rest = mine
    head, body = whole.head, bytes(whole.body.view())
    # RFC 9112 section 2.2 lets a server skip empty lines; h11 does not.
    other = theirs(wire.lstrip(b"\r\n"))
    assert other is not None, f"h11 refuses what we accept: {wire!r}"
    assert (head.method.encode(), head.target, body) == (other.method, other.target, other.body)
    assert [(name, value) for name, value in other.headers if b"_" not in name] == _as_h11_writes(
        [(field.name, field.value) for field in head.fields]
    )
    # After a request that ends the connection h11 keeps nothing.
    assert rest == other.rest or not head.keep_alive or head.websocket

    length = None if head.method == "GET" and not body else len(body)
    sent = upstream_request(head, target=head.target, content_length=length, request_id=b"id", peer=b"::1")
    got = theirs(sent + body)
    assert got is not None, f"h11 refuses what we forward: {sent!r}"
    assert (got.method, got.target, got.body, got.rest) == (head.method.encode(), head.target, body, b"")
    _canonical(sent, got)


def _as_h11_writes(headers: Headers) -> Headers:
    """h11 writes codings in lower case."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers]


def _canonical(sent: bytes, got: Reading) -> None:
    """One spelling: CRLF, lower case names, `name: value`, one framing header, ours last."""
    lines = sent.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
    names = [name for name, _ in got.headers]
    assert lines[1:-2] == [name + b": " + value for name, value in got.headers]
    for once in (b"host", b"x-request-id", b"x-forwarded-for"):
        assert names.count(once) == 1
    assert b"transfer-encoding" not in names
    assert names.count(b"content-length") <= 1
    assert names[-2:] == [b"x-request-id", b"x-forwarded-for"]


@settings(max_examples=1500, deadline=None)
@given(wires(), st.lists(st.integers(1, 120), max_size=3))
def test_what_we_accept_and_forward_h11_reads_alike(wire: bytes, cuts: list[int]) -> None:
    _agree(wire, cuts)


def test_h11_reads_the_good_corpus_alike_and_we_accept_it_however_it_is_cut() -> None:
    for case in cases("good"):
        assert ours(case.wire, []) is not None, case.checks
        for cut in range(1, len(case.wire)):
            _agree(case.wire, [cut])


def test_nothing_of_the_bad_corpus_is_accepted_however_it_is_cut() -> None:
    for name in BAD:
        for case in cases(name):
            if case.status not in {400, 413, 431} or len(case.wire) > 2000:
                continue
            for cut in range(1, len(case.wire)):
                assert ours(case.wire, [cut]) is None or case.status == 413, case.checks
