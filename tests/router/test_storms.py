"""Crowds that push: a client that floods the queue, SDKs that retry, replicas that come and go."""

from __future__ import annotations

import asyncio
import hashlib

import openai
import pytest
from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, plain, send_json

from gpuserved.api.routing import ApiKey
from gpuserved.core.replay import BUDGET_BURST, BUDGET_MIN_PER_S, BUDGET_RATIO

KEYS = [ApiKey(name=n, sha256=hashlib.sha256(f"key-{n}".encode()).hexdigest()) for n in ("greedy", "modest")]


async def _queued(bench: Bench, count: int) -> None:
    async def there() -> bool:
        return bool((await bench.stats())["queued"] == count)

    await bench.until(there)


def _as(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


async def test_a_key_that_fills_the_queue_gets_the_429s_and_another_its_turn(bench: Bench) -> None:
    order: list[str] = []

    async def one_by_one(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        order.append(seen.json["who"])
        return await send_json(writer, {})

    up = await bench.upstream("a-0", one_by_one)
    await bench.start(bench.model(queue=8), keys=KEYS)
    greedy = []
    for number in range(8):
        greedy.append(asyncio.create_task(bench.chat(who="greedy", n=number, headers=_as("greedy"))))
        await _queued(bench, number + 1)
    assert (await bench.chat(who="greedy", headers=_as("greedy"))).status == 429
    modest = [asyncio.create_task(bench.chat(who="modest", headers=_as("modest"))) for _ in range(2)]
    await bench.until(lambda: true(sum(task.done() for task in greedy) == 2))
    for task in greedy[-2:]:
        answer = await task
        assert (answer.status, answer.json["error"]["code"], answer.headers["retry-after"]) == (
            429,
            "queue_full",
            "1",
        )
    await bench.tell(bench.model(up, queue=8), keys=KEYS)
    answers = await asyncio.gather(*greedy[:-2], *modest)
    assert {answer.status for answer in answers} == {200}
    assert sorted(order) == ["greedy"] * 6 + ["modest"] * 2
    assert (await bench.stats())["queued"] == 0


@pytest.mark.fault(41)
@pytest.mark.parametrize("status", [500, 503])
async def test_sdk_retries_do_not_multiply_at_the_replicas(bench: Bench, status: int) -> None:
    async def failing(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        return await send_json(writer, {"error": {"message": "no"}}, status)

    ups = [await bench.upstream(f"a-{n}", failing) for n in range(3)]
    await bench.start(bench.model(*ups))
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{bench.port}/v1", api_key="x", max_retries=2, timeout=100
    ) as client:

        async def ask() -> None:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

        await asyncio.gather(*(ask() for _ in range(100)))
    took_s = loop.time() - began
    asked = (await bench.stats())["requests_total"]
    tried = sum(len(up.seen) for up in ups)
    allowed = asked * (1 + BUDGET_RATIO) + BUDGET_BURST + BUDGET_MIN_PER_S * took_s
    print(
        f"{asked} requests of the SDK's, {tried} tries at the replicas, {allowed:.0f} allowed, in {took_s:.1f} s"
    )
    assert asked == 300
    assert asked <= tried <= allowed


async def test_a_blocked_request_is_final_for_the_sdk_and_remembered(bench: Bench) -> None:
    async def kill(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if b"poison" in seen.body:
            await up.die()
            return False
        return await plain(up, seen, reader, writer)

    ups = [await bench.upstream(f"a-{n}", kill) for n in range(5)]
    await bench.start(bench.model(*ups))
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{bench.port}/v1", api_key="x", max_retries=4, timeout=100
    ) as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="blocked") as caught:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "poison"}]
                )
            assert caught.value.code == "request_blocked"
            assert caught.value.response.headers["x-should-retry"] == "false"
    assert sum(len(up.seen) for up in ups) == 3
    assert (await bench.stats())["requests_total"] == 2
    assert (await bench.chat()).status == 200


async def test_all_ejected_but_alive_are_used_rather_than_none(bench: Bench) -> None:
    async def cut(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        return False

    a, b = await bench.upstream("a-0", cut), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    assert (await bench.chat()).json["by"] == "b-0"
    assert (await bench.replica("a-0"))["rotation"] == "ejected"
    a.script = plain
    await b.die()
    # a-0 may not come back before its ejection is over, and the request does not wait for that.
    answer = await bench.chat()
    assert answer.json["by"] == "a-0"
    assert (await bench.replica("b-0"))["rotation"] == "ejected"
    assert (await bench.ask("GET", "/health")).status == 200


async def test_a_stored_response_of_an_ejected_replica_is_still_fetched_there(bench: Bench) -> None:
    async def make_or_cut(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if seen.method == "POST" and seen.json.get("cut"):
            return False
        return await send_json(writer, {"id": "resp_1", "by": up.name})

    a, b = await bench.upstream("a-0", make_or_cut), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    made = await bench.ask("POST", "/v1/responses", {"model": "m", "input": "x"})
    assert made.json["by"] == "a-0"
    while (await bench.replica("a-0"))["rotation"] != "ejected":
        await bench.chat(cut=True)
    assert (await bench.ask("GET", "/v1/responses/resp_1")).json["by"] == "a-0"
    await a.die()
    assert (await bench.ask("GET", "/v1/responses/resp_1")).status == 404


async def test_an_ejected_replica_sits_out_its_time_however_healthy_it_says_it_is(bench: Bench) -> None:
    async def cut(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        return False

    a, b = await bench.upstream("a-0", cut), await bench.upstream("b-0")
    await bench.start(bench.model(a, b))
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert (await bench.chat()).json["by"] == "b-0"

    async def back() -> bool:
        return bool((await bench.replica("a-0"))["rotation"] == "probation")

    await bench.until(back)
    assert loop.time() - before > 4.0
