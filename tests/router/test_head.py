"""HEAD is GET without a body, whoever answers and whatever the answer is."""

from __future__ import annotations

import asyncio
import hashlib

import msgspec
import pytest
from tests.router.bench import Bench, Client
from tests.router.scripted import Seen, Upstream, send_chunk, send_json, send_stream_head

from gpuserved.api.routing import ApiKey

CHAT = "/v1/chat/completions"


async def _head_and_get(client: Client, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of both: the answers differ in nothing but the body, and the connection goes on."""
    await client.send("HEAD", path, headers=headers)
    status, told = await client.head()
    got = await client.ask("GET", path, headers=headers)
    assert got.status == status
    assert {k: v for k, v in told.items() if k != "x-request-id"} == {
        k: v for k, v in got.headers.items() if k != "x-request-id"
    }
    assert len(got.body) == int(told["content-length"]) > 0
    return status


async def test_the_router_s_own_answers_and_errors_to_head_have_no_body(bench: Bench) -> None:
    await bench.start(bench.model(await bench.upstream("a-0")))
    client = await bench.client()
    statuses = {path: await _head_and_get(client, path) for path in ("/v1/models", "/v1/models/m", "/health", "/nothing", CHAT, "/v1/realtime", "/v1/responses/resp_unknown")}  # fmt: skip
    assert statuses == {
        "/v1/models": 200, "/v1/models/m": 200, "/health": 200, "/nothing": 404, CHAT: 404, "/v1/realtime": 426,
        "/v1/responses/resp_unknown": 404,
    }  # fmt: skip
    await client.send("HEAD", "/metrics")
    assert (await client.head())[0] == 200
    assert (await client.ask("GET", "/v1/models")).status == 200


async def test_a_missing_key_is_told_to_head_without_a_body(bench: Bench) -> None:
    key = {"name": "k", "sha256": hashlib.sha256(b"secret").hexdigest()}
    await bench.start(bench.model(await bench.upstream("a-0")), keys=msgspec.convert([key], list[ApiKey]))
    assert await _head_and_get(await bench.client(), "/v1/models") == 401


@pytest.mark.parametrize(
    "wire",
    [b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", b"HEAD http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
     b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"],
)  # fmt: skip
async def test_what_cannot_be_understood_of_head_is_refused_without_a_body(bench: Bench, wire: bytes) -> None:
    await bench.start()
    answer = await bench.raw(wire)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4")
    assert b"content-length: " in head
    assert body == b""


async def test_a_replica_is_asked_with_get_and_its_body_is_not_passed_on(bench: Bench) -> None:
    async def stored(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if seen.target.endswith("?stream=true"):
            await send_stream_head(writer)
            await send_chunk(writer, b"data: 1\n\n")
            await reader.read()  # until the router has closed it: nobody wants the rest
            return False
        return await send_json(writer, {"id": "resp_1", "method": seen.method})

    up = await bench.upstream("a-0", stored)
    await bench.start(bench.model(up))
    client = await bench.client()
    assert (await client.ask("POST", "/v1/responses", {"model": "m"})).status == 200
    assert await _head_and_get(client, "/v1/responses/resp_1") == 200
    await client.send("HEAD", "/v1/responses/resp_1?stream=true")
    assert (await client.head())[0] == 200
    assert (await client.ask("GET", "/v1/models")).status == 200
    assert [seen.method for seen in up.seen] == ["POST", "GET", "GET", "GET"]

    async def nothing_left() -> bool:
        stats = await bench.stats()
        return bool(stats["in_flight"] == 0 and stats["replicas"][0]["in_flight"] == 0)

    await bench.until(nothing_left)
