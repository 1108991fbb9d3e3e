"""The policies in a running router."""

from __future__ import annotations

import asyncio
from collections import Counter

from msgspec.structs import replace
from tests.router.bench import Bench
from tests.router.scripted import Seen, Upstream, send_json

from gpuserved.api.routing import ModelRoute


async def _by(bench: Bench, **more: object) -> str:
    headers = more.pop("headers", None)
    answer = await bench.chat(headers=headers, **more)  # type: ignore[arg-type]
    assert answer.status == 200
    return str(answer.json["by"])


async def test_a_session_stays_where_it_is_by_header_or_field_and_outlives_its_neighbours(
    bench: Bench,
) -> None:
    ups = [await bench.upstream(f"a-{n}") for n in range(4)]
    await bench.start(bench.model(*ups, policy="session", session_header="x-chat"))
    home: dict[str, str] = {}
    for name in (f"s{n}" for n in range(12)):
        home[name] = await _by(bench, headers={"X-Chat": name, "X-Session-Id": "other"}, user="someone")
        for field in ("session_id", "prompt_cache_key", "user"):
            assert await _by(bench, **{field: name}) == home[name]
        assert await _by(bench, session_id=name, user="someone else") == home[name]
    assert len(set(home.values())) > 1
    gone = home["s0"]
    await bench.tell(
        bench.model(*(up for up in ups if up.name != gone), policy="session", session_header="x-chat")
    )
    for name, before in home.items():
        after = await _by(bench, user=name)
        assert before in {after, gone}
    for odd in ({"user": 7}, {"user": ""}, {"session_id": ["x"]}, {}):
        assert await _by(bench, **odd) != gone


async def test_weights_and_slow_start_shape_what_is_in_flight(bench: Bench) -> None:
    go = asyncio.Event()

    async def hold(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        await go.wait()
        return await send_json(writer, {"by": up.name})

    light, heavy, fresh = [await bench.upstream(name, hold) for name in ("light-0", "heavy-0", "fresh-0")]

    def route(up: Upstream, weight: float, slow_start_s: float) -> ModelRoute:
        made = bench.model(up)
        replicas = [replace(r, weight=weight, slow_start_s=slow_start_s) for r in made.replicas]
        return replace(made, profile=up.name, replicas=replicas)

    old = [route(light, 1.0, 0.0), route(heavy, 3.0, 0.0)]
    await bench.start(*old)
    asked = [asyncio.create_task(bench.chat()) for _ in range(12)]

    async def all_there() -> bool:
        return sum(len(up.seen) for up in (light, heavy, fresh)) == len(asked)

    await bench.until(all_there)
    assert (len(light.seen), len(heavy.seen)) == (3, 9)
    await bench.tell(*old, route(fresh, 1.0, 3600.0))
    asked += [asyncio.create_task(bench.chat()) for _ in range(8)]
    await bench.until(all_there)
    assert len(fresh.seen) == 1
    go.set()
    by = Counter(answer.json["by"] for answer in await asyncio.gather(*asked))
    assert by["fresh-0"] == 1
    assert all(r["in_flight"] == 0 for r in (await bench.stats())["replicas"])
