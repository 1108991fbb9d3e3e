"""The pieces without sockets: heads, chunks, events, envelopes, the allow-list."""

from __future__ import annotations

import json

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core import routes
from gpuserved.core.routes import Kind, Sse
from gpuserved.router import params
from gpuserved.router.http import fields
from gpuserved.router.http.errors import HttpError
from gpuserved.router.http.framing import ChunkedDecoder, FramingError
from gpuserved.router.http.head import BadAnswer, HeadMemo, RequestHead, parse_request, parse_response
from gpuserved.router.http.sse import REPLICA_DIED, ROUTER_ENDED, EventGate, First, cut_notice, first_event

BAD_HEADS = {
    "cl and te": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two cl": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "signed cl": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
    "long cl": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000000000000\r\n\r\n",
    "te list": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "te twice": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "te in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n",
    "control": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x1b2\r\n\r\n",
    "bare cr": b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
    "empty name": b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: 1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "host with path": b"GET / HTTP/1.1\r\nHost: a/v1?\r\n\r\n",
    "host with user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "absolute form": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "http/2": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "http/0.9": b"GET /\r\nHost: a\r\n\r\n",
    "raw utf-8 path": "GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "lower method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_ambiguous_heads_are_refused(name: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_request(BAD_HEADS[name])
    assert caught.value.status == 400


def _lines(head: RequestHead) -> list[tuple[bytes, bytes]]:
    return [(field.name, field.value) for field in head.fields]


def test_a_good_head_keeps_everything_but_underscores() -> None:
    head = parse_request(
        b"POST /v1/x?a=b HTTP/1.1\r\nHost: a_b.c:80\r\nX-One: \t1 \r\nx_two: 2\r\nContent-Length: 7\r\n\r\n"
    )
    assert (head.method, head.path, head.query, head.content_length) == ("POST", "/v1/x", "a=b", 7)
    assert _lines(head) == [(b"host", b"a_b.c:80"), (b"x-one", b"1"), (b"content-length", b"7")]
    assert head.keep_alive


class _Llhttp:
    """What another parser makes of the same bytes."""

    def __init__(self, raw: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(raw)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))


_NAMES = st.sampled_from(
    [b"X-A", b"x-a", b"Accept", b"Content-Length", b"Authorization", b"X-B ", b" X", b"a_b", b""]
)
_VALUES = st.lists(
    st.sampled_from([b"a", b" ", b"\t", b"7", b",", b":", b"\r", b"\n", b"\x00", b"\xff"]), max_size=5
)


@given(st.lists(st.tuples(_NAMES, _VALUES.map(b"".join)), max_size=6))
def test_a_head_that_is_accepted_is_read_the_same_by_another_parser(lines: list[tuple[bytes, bytes]]) -> None:
    raw = b"GET /a HTTP/1.1\r\nHost: a\r\n" + b"".join(n + b":" + v + b"\r\n" for n, v in lines) + b"\r\n"
    try:
        heads = [parse_request(raw) for _ in range(2)]  # the second time from what is remembered
    except HttpError:
        return
    assert heads[0] == heads[1]
    assert _lines(heads[0]) == [(n, v) for n, v in _Llhttp(raw).headers if b"_" not in n]


def test_lines_with_secrets_are_not_remembered_and_memory_is_bounded() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n%b: %b\r\n\r\n"
    for name in (b"Authorization", b"X-Api-Key", b"Cookie"):
        parse_request(head % (name, b"secret-value"))
    for n in range(5000):
        parse_request(head % (b"X-N", b"%d" % n))
    remembered = vars(fields)["_remembered"]
    assert not any(b"secret-value" in line for line in remembered)
    assert len(remembered) <= 512


_LENGTHS = st.sampled_from(
    [b"1", b"7", b"0", b"123456", b"1 ", b" 1", b"+1", b"1" * 19, b"", b"1\r\nContent-Length: 2"]
)
_NEIGHBOURS = st.sampled_from([b"", b"\r\nX: 1", b"\r\nTransfer-Encoding: chunked", b"\r\ncontent-length: 1"])


@given(st.lists(st.tuples(_NEIGHBOURS, _LENGTHS, _NEIGHBOURS), min_size=2, max_size=6))
def test_a_remembered_head_never_reads_otherwise_than_a_new_one(
    heads: list[tuple[bytes, bytes, bytes]],
) -> None:
    memo = HeadMemo(parse_request, b"\r\nContent-Length: ")
    for before, length, after in heads:
        raw = b"POST / HTTP/1.1\r\nHost: a%b\r\nContent-Length: %b%b\r\n\r\n" % (before, length, after)
        try:
            expected = parse_request(raw)
        except HttpError:
            with pytest.raises(HttpError):
                memo.read(raw)
        else:
            assert memo.read(raw) == expected


def test_too_many_headers_are_431() -> None:
    with pytest.raises(HttpError) as caught:
        parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 100 + b"\r\n")
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 999 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
    ],
)
def test_answers_with_doubtful_heads_are_not_trusted(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_response(raw)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_chunks_decode_the_same_however_they_are_cut(pieces: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(b"%x;e=1\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\nTrailer: x\r\n\r\nNEXT"
    decoder, out, at = ChunkedDecoder(), b"", 0
    while not decoder.done:
        step = data.draw(st.integers(1, max(1, len(wire) - at)))
        payload, used = decoder.feed(wire[at : at + step])
        out += payload
        at += used
    assert out == b"".join(pieces)
    assert wire[at:] == b"NEXT"


@pytest.mark.parametrize(
    "wire",
    [b"+5\r\nhello\r\n", b"-1\r\n", b"0x5\r\n", b" 5\r\n", b"5 5\r\n", b"5\nhello", b"\r\n", b"5\r\nhelloXX", b"5\r\nhello\n",
     b"fffffffffffffffff\r\n", b"5;\x00\r\n", b"5" * 2000],
)  # fmt: skip
def test_bad_chunks_are_refused(wire: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedDecoder().feed(wire)


@given(
    st.lists(st.sampled_from([b"data: a\n\n", b"event: x\ndata: b\n\n", b": ping\r\n\r\n"]), max_size=8),
    st.data(),
)
def test_gate_lets_only_whole_events_pass_and_loses_nothing(events: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(events) + b"data: unfin"
    gate, out, at = EventGate(), b"", 0
    while at < len(wire):
        step = data.draw(st.integers(1, len(wire) - at))
        passed = gate.feed(wire[at : at + step])
        assert not passed or passed.endswith((b"\n\n", b"\r\n\r\n"))
        out += passed
        at += step
    assert out == b"".join(events)
    assert out + gate.rest() == wire


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        (b'data: {"error": {"code": 500}}\n\n', First.ERROR),
        (b'data: {"error": {"code"', First.UNCLEAR),
        (b'data: {"er', First.UNCLEAR),
        (b'event: error\ndata: {"type":"error"}\n\n', First.ERROR),
        (b"event: mess", First.UNCLEAR),
        (b'event: message_start\ndata: {"type":"message_start"}\n\n', First.DATA),
        (b'data: {"id":', First.DATA),
        (b": ping\n\n", First.DATA),
    ],
)
def test_first_events(held: bytes, kind: First) -> None:
    assert first_event(held) is kind


def test_death_notices_are_json_both_ways() -> None:
    openai = cut_notice(REPLICA_DIED, Sse.OPENAI, mid_event=False).split(b"\n\n")
    assert json.loads(openai[0].removeprefix(b"data: "))["error"]["type"] == "replica_died"
    assert openai[1] == b"data: [DONE]"
    typed = cut_notice(ROUTER_ENDED, Sse.TYPED, mid_event=True)
    assert typed.startswith(b"\n\nevent: error\ndata: {")


@pytest.mark.parametrize(
    ("body", "word"),
    [(b"{", "JSON"), (b"[]", "object"), (b"{}", "model"), (b'{"model": 3}', "model"), (b'{"model": ""}', "model"),
     (b"\xff\xfe", "JSON"), (b'{"model": NaN}', "JSON"), (b'{"model": "m", "x": ' + b"[" * 200000, "nested"), (b"", "JSON")],
)  # fmt: skip
def test_bodies_without_a_model_are_400(body: bytes, word: str) -> None:
    with pytest.raises(HttpError) as caught:
        params.read_json(body)
    assert caught.value.status == 400
    assert word in caught.value.message


def test_model_is_rewritten_and_nothing_else() -> None:
    body = b'{"messages": [{"content": "\\u00e9  x", "n": 1.0}], "model": "a", "temperature": 1e-1}'
    seen = params.read_json(body)
    changed = params.with_model(body, seen, "b")
    assert changed == b'{"messages":[{"content": "\\u00e9  x", "n": 1.0}],"model":"b","temperature":1e-1}'


def test_multipart_model_is_found_and_rewritten() -> None:
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbytes\r\n'
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--B--\r\n'
    )
    seen = params.read_multipart(form, b'multipart/form-data; boundary="B"')
    assert seen.model == "whisper"
    assert params.with_model(form, seen, "other") == form.replace(b"whisper", b"other")
    with pytest.raises(HttpError):
        params.read_multipart(form.replace(b'"model"', b'"mode"'), b"multipart/form-data; boundary=B")


def test_allow_list() -> None:
    kinds = {
        ("POST", "/v1/chat/completions"): Kind.JSON,
        ("POST", "/v1/audio/transcriptions"): Kind.MULTIPART,
        ("GET", "/v1/responses/resp_1"): Kind.RESPONSE_ID,
        ("POST", "/v1/responses/resp_1/cancel"): Kind.RESPONSE_ID,
        ("GET", "/v1/models/meta/llama"): Kind.MODEL,
        ("GET", "/health"): Kind.HEALTH,
    }
    for (method, path), kind in kinds.items():
        found = routes.match(method, path)
        assert found is not None
        assert found.route.kind is kind
    for method, path in [
        ("GET", "/v1/chat/completions"), ("POST", "/v1/load_lora_adapter"), ("POST", "/invocations"), ("POST", "/sleep"),
        ("GET", "/v1/responses/a/b"), ("GET", "/v1/responses/"), ("POST", "/v1//completions"), ("GET", "/server_info"),
        ("POST", "/v1/responses/resp_1"), ("POST", "/collective_rpc"), ("GET", "/v1/responses/.."), ("GET", "/docs"),
    ]:  # fmt: skip
        assert routes.match(method, path) is None
