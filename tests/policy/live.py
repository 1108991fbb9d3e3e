"""The policies in front of real replicas: a daemon, its router, multi-turn chats; hits from the engines' own counters.

`python -m tests.policy.live` runs four look-alikes; with GPUSERVE_TEST_VLLM set to the interpreter of a vLLM environment and `vllm` as
argument, two real vLLM servers (CPU build). Every policy gets conversations of its own, so that none finds the caches of another.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.e2e.box import Box, until
from tests.e2e.texts import SERVED, Scalar, make_model, sim, vllm_profile

from gpuserved.engines.vllm.like import vllm_cache_metrics
from gpuserved.router.prompts import read_figures

POLICIES = ("round_robin", "least_inflight", "session", "prefix")
_NAMES = vllm_cache_metrics("/metrics")
_WORDS = [
    "about",
    "after",
    "again",
    "also",
    "because",
    "before",
    "between",
    "could",
    "every",
    "first",
    "from",
    "great",
    "have",
    "here",
    "into",
    "just",
    "know",
    "later",
    "make",
    "more",
    "most",
    "never",
    "only",
    "other",
    "over",
    "people",
    "place",
    "right",
    "should",
    "some",
    "still",
    "take",
    "than",
    "that",
    "their",
    "there",
    "these",
    "thing",
    "think",
    "this",
    "time",
    "under",
    "until",
    "very",
    "want",
    "water",
    "well",
    "what",
    "when",
    "where",
    "which",
    "while",
    "with",
    "work",
    "would",
    "year",
    "your",
    "order",
    "late",
    "item",
    "number",
    "number",
]


@dataclass(frozen=True)
class Load:
    """Who talks, and how much. Sizes in words, each about one token of the look-alike."""

    conversations: int = 24
    turns: int = 5
    systems: int = 6
    """System prompts that conversations share."""
    system: int = 300
    said: int = 120
    answer_tokens: int = 12
    think_s: float = 0.3


@dataclass(frozen=True)
class Seen:
    """What one policy showed."""

    hit_pct: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    requests: tuple[int, ...]
    """Of each replica."""


def counters(box: Box) -> tuple[float, float]:
    """(hits, queries) of all replicas, in tokens, from their own pages."""
    hits = queries = 0.0
    for engine in sorted(box.roots.run.glob("r/*/engine.sock")):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(engine))
            link.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            page = b"".join(iter(lambda: link.recv(1 << 16), b""))
        found = read_figures(page, _NAMES)
        hits += found.hits or 0.0
        queries += found.queries or 0.0
    return hits, queries


async def _turn(port: int, body: bytes) -> tuple[float, str]:
    """(seconds to the first piece of the answer, the answer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    first, text, seen = None, "", b""
    async for line in reader:
        seen += line
        if line.startswith(b"data: {"):
            piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if piece:
                first = first or time.monotonic() - started
                text += piece
    writer.close()
    assert first is not None, seen.decode(errors="replace")
    return first, text


async def _talk(port: int, load: Load, seed: int, ttfts: list[float]) -> None:
    rng = random.Random(seed)

    def words(of: random.Random, count: int) -> str:
        return " ".join(of.choice(_WORDS) for _ in range(count))

    await asyncio.sleep(rng.random() * load.think_s * 4)
    system = random.Random(f"{seed // 10_000} {seed % load.systems}")
    messages = [{"role": "system", "content": words(system, load.system)}]
    for _ in range(load.turns):
        messages.append({"role": "user", "content": words(rng, load.said)})
        body = {
            "model": SERVED, "messages": messages, "max_tokens": load.answer_tokens, "min_tokens": load.answer_tokens,
            "stream": True, "user": str(seed),
        }  # fmt: skip
        ttft, text = await _turn(port, json.dumps(body).encode())
        ttfts.append(ttft)
        messages.append({"role": "assistant", "content": text})
        await asyncio.sleep(rng.expovariate(1 / load.think_s))


def _requests(box: Box) -> list[int]:
    stats = box.router_stats() or {"replicas": []}
    return [row["requests_total"] for row in sorted(stats["replicas"], key=lambda row: str(row["id"]))]


def measure(box: Box, profile: str, policy: str, load: Load, seed: int) -> Seen:
    """Apply the policy and talk."""
    with_policy = f'policy = "{policy}"\n' + profile
    box.ok("apply", box.write(SERVED, with_policy))
    table = box.roots.run / "routing.json"
    until(lambda: f'"policy":"{policy}"' in table.read_text(), f"policy {policy} in the table", 20)
    # The router has read it: the supervisor tells it at once.
    time.sleep(1.5)
    before, served = counters(box), _requests(box)
    ttfts: list[float] = []

    async def all_talk() -> None:
        talks = (_talk(box.port, load, seed * 10_000 + n, ttfts) for n in range(load.conversations))
        await asyncio.gather(*talks)

    asyncio.run(all_talk())
    after = counters(box)
    ordered = sorted(ttfts)
    return Seen(
        100 * (after[0] - before[0]) / (after[1] - before[1]),
        1000 * ordered[len(ordered) // 2],
        1000 * ordered[int(len(ordered) * 0.99)],
        tuple(now - then for now, then in zip(_requests(box), served, strict=True)),
    )


def sim_profile(replicas: int = 4, **flags: Scalar) -> str:
    """Look-alikes whose caches together hold the load, and none alone."""
    own: dict[str, Scalar] = {"load_s": 0.2, "step_ms": 10, "prefill_tok_s": 4000, "kv_cache_tokens": 9000}
    return sim(SERVED, replicas=replicas, flags=own | flags, tables={"routing": {"slow_start_s": 0}})


def main() -> None:
    real = "vllm" in sys.argv[1:]
    box = Box()
    try:
        with TemporaryDirectory() as folder:
            if real:
                profile = vllm_profile(make_model(Path(folder)), SERVED, {"kv_cache_memory_bytes": 16 << 20})
                load = Load(
                    conversations=10, turns=5, systems=3, system=100, said=60, answer_tokens=6, think_s=1.0
                )
            else:
                profile, load = sim_profile(), Load()
            box.up({SERVED: profile}, wait_s=400 if real else 60)
            print("| engine | policy | tokens cached % | TTFT p50 ms | p99 ms | requests per replica |")
            print("| --- | --- | --- | --- | --- | --- |")
            for seed, policy in enumerate(POLICIES, 1):
                seen = measure(box, profile, policy, load, seed)
                name = "vLLM (CPU build)" if real else "look-alike"
                spread = " ".join(map(str, seen.requests))
                print(
                    f"| {name} | {policy} | {seen.hit_pct:.1f} | {seen.ttft_p50_ms:.0f} | {seen.ttft_p99_ms:.0f} | {spread} |",
                    flush=True,
                )
    finally:
        box.close()


if __name__ == "__main__":
    main()
