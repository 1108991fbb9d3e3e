"""The table of docs/performance.md: `python -m tests.policy.table [SEEDS]`. Each row is the median of so many seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median

from tests.policy import traffic
from tests.policy.box import Box, Result

from gpuserved.core.policy.make import make_policy

POLICIES = ("round_robin", "least_inflight", "session", "prefix")
SHAPES = {"chat": traffic.chat, "agents": traffic.agents, "strangers": traffic.strangers}


def runs(
    policy: str, shape: str, seeds: int, *, routers: int = 1, tokens: int = 60_000, shared: bool = True
) -> list[Result]:
    """One result a seed."""
    return [
        Box(
            lambda: make_policy(policy), routers=routers, cache_tokens=tokens, seed=seed, shared=shared
        ).run(SHAPES[shape](seed))
        for seed in range(1, seeds + 1)
    ]  # fmt: skip


def row(results: list[Result]) -> Iterator[str]:
    """Medians, as the table has them."""
    yield f"{median(100 * r.hit_rate for r in results):.1f}"
    yield f"{median(r.ttft_ms(0.5) for r in results):.0f}"
    yield f"{median(r.ttft_ms(0.99) for r in results):.0f}"
    yield f"{median(r.imbalance for r in results):.2f}"
    yield f"{median(r.requests_imbalance for r in results):.2f}"


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(
        "| traffic | cache | routers | policy | tokens cached % | TTFT p50 ms | p99 ms | in flight max/mean | requests max/mean |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for shape, tokens, routers in (
        ("chat", 60_000, 1), ("chat", 60_000, 4), ("chat", 160_000, 1), ("agents", 60_000, 1), ("agents", 60_000, 4),
        ("strangers", 60_000, 1), ("strangers", 60_000, 4),
    ):  # fmt: skip
        for policy in POLICIES:
            cells = row(runs(policy, shape, seeds, routers=routers, tokens=tokens))
            print(
                f"| {shape} | {tokens // 1000}k | {routers} | {policy} | " + " | ".join(cells) + " |",
                flush=True,
            )
    alone = row(runs("prefix", "chat", seeds, routers=4, shared=False))
    print("| chat | 60k | 4, each alone | prefix | " + " | ".join(alone) + " |")


if __name__ == "__main__":
    main()
