"""API keys: who is let in, how much each may ask, and what each has used."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, send_chunk, send_json, send_stream_head

from gpuserved.api.routing import ApiKey
from gpuserved.router.response import UsageTap

CHAT = "/v1/chat/completions"
SECRET = "gs-never-in-a-log"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 99},
}


def key(name: str, **limits: int) -> ApiKey:
    return ApiKey(name=name, sha256=hashlib.sha256(f"{SECRET}-{name}".encode()).hexdigest(), **limits)


def auth(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET}-{name}"}


async def answer(
    up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Plain or streamed, with usage where it is asked for; five tokens."""
    if not seen.json.get("stream"):
        return await send_json(
            writer, {"choices": [{"text": 'a "usage": {"total_tokens": 1} of it'}], "usage": USAGE}
        )
    await send_stream_head(writer)
    await send_chunk(writer, b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n')
    for _ in range(5):
        await send_chunk(writer, b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await asyncio.sleep(0.01)
    if seen.json.get("stream_options"):
        await send_chunk(
            writer,
            b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}\n\n',
        )
    await send_chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    return True


async def _of(bench: Bench, name: str) -> dict[str, Any]:
    return next(row for row in (await bench.stats())["keys"] if row["name"] == name)


async def test_requests_per_minute_are_429_with_retry_after_and_another_key_goes_on(bench: Bench) -> None:
    up = await bench.upstream("a-0", answer)
    await bench.start(bench.model(up), keys=[key("alice", requests_per_minute=3), key("bob")])
    answers = [await bench.chat(headers=auth("alice")) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 200, 429]
    error = answers[-1].json["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "alice" in error["message"]
    assert "requests per minute" in error["message"]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert len(up.seen) == 3
    assert (await bench.chat(headers=auth("bob"))).status == 200
    assert (await bench.ask("GET", "/v1/models", headers=auth("alice"))).status == 200
    assert (await _of(bench, "alice"))["limited_total"] == 1


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
async def test_tokens_are_charged_as_reported_and_a_used_up_limit_is_429(bench: Bench, limit: str) -> None:
    up = await bench.upstream("a-0", answer)
    await bench.start(bench.model(up), keys=[key("alice", **{limit: 20})])
    assert [(await bench.chat(headers=auth("alice"))).status for _ in range(3)] == [200, 200, 429]
    refused = await bench.chat(headers=auth("alice"))
    if limit == "tokens_per_day":
        assert int(refused.headers["retry-after"]) > 3600
        assert refused.headers["x-should-retry"] == "false"
    row = await _of(bench, "alice")
    assert (row["requests_total"], row["limited_total"]) == (2, 2)
    assert (row["prompt_tokens_total"], row["completion_tokens_total"]) == (14, 10)


@pytest.mark.parametrize("reported", [True, False])
async def test_a_stream_is_counted_by_its_usage_else_by_its_events_and_not_altered(
    bench: Bench, reported: bool
) -> None:
    up = await bench.upstream("a-0", answer)
    await bench.start(bench.model(up), keys=[key("alice")])
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if reported else {}
    streamed = await bench.chat(headers=auth("alice"), stream=True, **more)
    assert streamed.body.count(b"data: ") == 7 + reported
    assert up.seen[0].json.get("stream_options") == more.get("stream_options")
    await bench.until(lambda: _charged(bench))
    row = await _of(bench, "alice")
    assert row["completion_tokens_total"] == 5
    assert row["prompt_tokens_total"] == (7 if reported else len(up.seen[0].body) // 4)
    page = (await bench.ask("GET", "/metrics", headers=auth("alice"))).body.decode()
    assert 'gpuserve_router_key_requests_total{key="alice"} 1' in page
    assert 'gpuserve_router_key_tokens_total{key="alice",kind="completion"} 5' in page
    assert 'gpuserve_router_key_limited_total{key="alice"} 0' in page


async def _charged(bench: Bench) -> bool:
    return bool((await _of(bench, "alice"))["completion_tokens_total"])


async def test_a_client_that_leaves_pays_for_what_came(bench: Bench) -> None:
    async def endless(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await send_stream_head(writer)
        for _ in range(40):
            await send_chunk(writer, b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await reader.read()
        return False

    up = await bench.upstream("a-0", endless)
    await bench.start(bench.model(up), keys=[key("alice")])
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m", "stream": True}, auth("alice"))
    await client.head()
    got = b""
    while got.count(b"content") < 40:
        got += await client.chunk()
    client.writer.transport.abort()
    await bench.until(lambda: _charged(bench))
    assert (await _of(bench, "alice"))["completion_tokens_total"] == 38


async def test_keys_change_without_a_restart_and_what_was_used_stays_used(bench: Bench) -> None:
    up = await bench.upstream("a-0", answer)
    await bench.start(bench.model(up), keys=[key("alice", requests_per_minute=2)])
    assert [(await bench.chat(headers=auth("alice"))).status for _ in range(3)] == [200, 200, 429]
    assert (await bench.chat(headers=auth("bob"))).status == 401
    await bench.tell(bench.model(up), keys=[key("alice", requests_per_minute=3), key("bob")])
    assert [(await bench.chat(headers=auth("alice"))).status for _ in range(2)] == [200, 429]
    assert (await bench.chat(headers=auth("bob"))).status == 200
    await bench.tell(bench.model(up), keys=[key("bob")])
    assert (await bench.chat(headers=auth("alice"))).status == 401


async def test_a_key_is_in_no_log_no_figure_and_no_request_of_a_replica(bench: Bench) -> None:
    async def die(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await up.die()
        return False

    a, b = await bench.upstream("a-0", die), await bench.upstream("b-0", answer)
    await bench.start(bench.model(a, b), keys=[key("alice", requests_per_minute=3)])
    for headers in (
        auth("alice"),
        {"X-Api-Key": f"{SECRET}-alice"},
        {"Authorization": f"bearer {SECRET}-alice"},
    ):
        assert (await bench.chat(headers=headers)).status == 200
    assert (await bench.chat(headers=auth("alice"))).status == 429
    assert (await bench.chat(headers=auth("mallory"))).status == 401
    await bench.until(lambda: true("death" in (bench.dir / "router.log").read_text()))
    page = (await bench.ask("GET", "/metrics", headers=auth("alice"))).body.decode()
    everything = (bench.dir / "router.log").read_text() + page + str(await bench.stats())
    assert "alice" in everything
    assert SECRET not in everything
    assert SECRET not in str([seen.headers for up in (a, b) for seen in up.seen])


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', (3, 0)),
        (b'{"output":[],"usage":{"input_tokens":4,"output_tokens":6,"total_tokens":10},"user":null}', (4, 6)),
        (b'{"content":"\\"usage\\": {\\"total_tokens\\": 9}","usage":{"total_tokens":8,"completion_tokens":2}}', (6, 2)),
        (b'{"text": "no figures at all"}', (0, 0)),
        (b'{"usage": null}', (0, 0)),
    ],
)  # fmt: skip
def test_usage_of_plain_answers(body: bytes, tokens: tuple[int, int]) -> None:
    tap = UsageTap(sse=False)
    for at in range(0, len(body), 7):
        tap.feed(body[at : at + 7])
    assert tap.tokens(400) == tokens
