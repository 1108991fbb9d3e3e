"""Who is let in: routes, keys, heads, bodies."""

from __future__ import annotations

import asyncio
import hashlib
import json

import msgspec
import pytest
from tests.router.bench import Bench
from tests.router.scripted import Seen, Upstream, send_json

CHAT = "/v1/chat/completions"


async def test_chunked_request_is_sent_with_a_length_and_expect_is_answered(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    client = await bench.client()
    client.writer.write(
        b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        % CHAT.encode()
    )
    assert (await client.head())[0] == 100
    client.writer.write(b'8\r\n{"model"\r\n5\r\n:"m"}\r\n0\r\n\r\n')
    assert (await client.answer()).status == 200
    assert up.seen[0].body == b'{"model":"m"}'
    assert up.seen[0].get("content-length") == "13"
    assert up.seen[0].get("expect") is None


async def test_pipelined_requests_are_answered_in_order_and_http10_closes(bench: Bench) -> None:
    async def tell(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        return await send_json(writer, {"n": seen.json["n"]})

    up = await bench.upstream("a-0", tell)
    await bench.start(bench.model(up))
    client = await bench.client()
    for n in range(5):
        await client.send("POST", CHAT, {"model": "m", "n": n})
    assert [(await client.answer()).json["n"] for _ in range(5)] == [0, 1, 2, 3, 4]
    body = b'{"model":"m","n":9}'
    answer = await bench.raw(
        b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    )
    assert b"connection: close" in answer
    assert answer.endswith(b'{"n": 9}')


async def test_models_health_metrics_and_the_allow_list(bench: Bench) -> None:
    a, b, c = [await bench.upstream(name) for name in ("a-0", "b-0", "c-0")]
    await bench.start(bench.model(a, name="x"), bench.model(b, name="y"), bench.model(c, name="x"))
    listed = (await bench.ask("GET", "/v1/models")).json
    assert [card["id"] for card in listed["data"]] == ["x", "y"]
    assert {(card["object"], card["owned_by"]) for card in listed["data"]} == {("model", "gpuserve")}
    assert (await bench.ask("GET", "/v1/models/y")).json["id"] == "y"
    assert (await bench.ask("GET", "/v1/models/z")).status == 404
    assert {(await bench.chat("x")).json["by"] for _ in range(4)} == {"a-0", "c-0"}
    assert (await bench.chat("y")).json["by"] == "b-0"
    assert (await bench.ask("GET", "/health")).status == 200
    page = (await bench.ask("GET", "/metrics")).body.decode()
    assert 'gpuserve_router_requests_total{model="x",code="200"} 4' in page
    assert 'gpuserve_router_in_flight{replica="b-0",generation="1"} 0' in page
    assert 'gpuserve_router_first_byte_seconds_bucket{model="y",le="+Inf"} 1' in page
    for path in ("/v1/load_lora_adapter", "/invocations", "/sleep", "/v1/unknown", "/docs"):
        answer = await bench.ask("POST", path, {"model": "x"})
        assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_url")
    assert sum(len(up.seen) for up in (a, b, c)) == 5


async def test_keys_guard_everything_but_health(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    digest = "62af8704764faf8ea82fc61ce9c4c3908b6cb97d463a634e9e587d7c885db0ef"  # sha256 of test-key
    keys = [{"name": "k", "sha256": digest}]
    bench.write_table(bench.model(up))
    table = msgspec.to_builtins(bench.table) | {"keys": keys}
    (bench.dir / "routing.json").write_text(json.dumps(table))
    await bench.start_process()
    assert hashlib.sha256(b"test-key").hexdigest() == digest
    assert (await bench.ask("GET", "/health")).status == 200
    for path in ("/v1/models", "/metrics", "/nothing"):
        assert (await bench.ask("GET", path)).status == 401
    refused = await bench.chat(headers={"Authorization": "Bearer wrong"})
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    assert (await bench.chat(headers={"Authorization": "Bearer test-key"})).status == 200
    assert (await bench.chat(headers={"X-Api-Key": "test-key"})).status == 200
    assert [seen.get("x-api-key") for seen in up.seen] == [None, None]


@pytest.mark.fault(22)
async def test_bad_input_gets_openai_errors_on_a_connection_that_lives(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    client = await bench.client()
    for body, status, code in [
        (b"{", 400, "invalid_json"),
        (b'{"model": 1}', 400, "model_required"),
        (b'{"model": "m", "x": ' + b"[" * 100000 + b"]" * 100000 + b"}", 400, "invalid_json"),
        (b'{"model": "none"}', 404, "model_not_found"),
    ]:
        answer = await client.ask("POST", CHAT, body)
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert "served here: m" in answer.json["error"]["message"]
    assert (await client.ask("POST", CHAT, {"model": "m"})).status == 200
    assert len(up.seen) == 1


async def test_smuggling_is_refused_and_never_reaches_a_replica(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    for bad in (
        start + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        start + b"Transfer-Encoding: xchunked\r\n\r\n",
        start + b"Content-Length: 1, 1\r\n\r\nx",
        start + b"X: a\r\n b\r\n\r\n",
        start + b"X: \x00\r\n\r\n",
        b"POST http://evil/v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models HTTP/1.1\nHost: a\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ):
        answer = await bench.raw(bad + b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"\r\n\r\n") == 1
    assert (await bench.raw(start + b"X: " + b"y" * 40000)).startswith(b"HTTP/1.1 431 ")
    assert up.seen == []
