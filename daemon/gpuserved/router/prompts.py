"""Which prompts went where: what this router sent, what its peers say they sent, and what the engines say came of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from gpuserved.api.routing import CacheMetrics
from gpuserved.core.policy.base import Ties
from gpuserved.router.fetch import fetch
from gpuserved.router.peers import Peers
from gpuserved.router.registry import Registry
from gpuserved.router.replica import Replica
from gpuserved.telemetry.metrics_text import CAP_BYTES, labels, read

TICK_S = 1.0
FIGURES_S = 5.0
"""Between two looks at an engine's counters. vLLM writes 100 KB for each; a cache does not change its ways in seconds."""

FIGURES_TIMEOUT_S = 4.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheFigures:
    """What an engine says of its prefix cache in its Prometheus text; None: it does not say."""

    hits: float | None = None
    queries: float | None = None
    """Tokens since the engine started."""
    capacity_tokens: float | None = None


class Prompts:
    """Keeps the mirrors of the replicas of models whose policy is `prefix`; idle where there are none."""

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self._registry = registry
        self._peers = peers
        self._figures_at = 0.0

    def tied(self) -> list[Replica]:
        """The replicas that are chosen by prompt."""
        models = (m for m in self._registry.models.values() if m.ties is Ties.PREFIX)
        return list(dict.fromkeys(replica for model in models for replica in model.replicas))

    def hear(self, now: float) -> None:
        """Take in what the peers told; once before each choice."""
        for note in self._peers.hear():
            replica = self._registry.started(note.identity, note.generation)
            if replica is not None:
                replica.prefill.noted(replica.mirror.sent(note.key), note.sent_at, now)

    async def run(self) -> None:
        """Keep in touch, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.tick(loop.time())
            except Exception:
                log.exception("the mirrors were not kept")
            await asyncio.sleep(TICK_S)

    async def tick(self, now: float) -> None:
        """Look for peers, and now and then at the engines' counters."""
        tied = self.tied()
        if not tied:
            return
        self._peers.find()
        if now < self._figures_at:
            return
        self._figures_at = now + FIGURES_S
        for outcome in await asyncio.gather(*map(_look, tied), return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("an engine's counters were not read: %r", outcome)

    def close(self) -> None:
        """Let go of the shared memory."""
        self._peers.close()


async def _look(replica: Replica) -> None:
    if replica.cache_metrics is None or replica.dead or not replica.admit:
        return
    names = replica.cache_metrics
    page = await fetch(replica.address, names.path, FIGURES_TIMEOUT_S, body_max_bytes=CAP_BYTES)
    if page.status != 200:
        return
    figures = read_figures(page.body, names)
    if figures.capacity_tokens is not None:
        replica.mirror.learn_capacity(figures.capacity_tokens)
    if figures.hits is not None and figures.queries is not None:
        replica.mirror.learn_counters(figures.hits, figures.queries)


def read_figures(page: bytes, names: CacheMetrics) -> CacheFigures:
    """The figures in a page of Prometheus text."""
    found = read(page, frozenset({names.hits, names.queries}))
    sizes = [size for row in labels(page, names.config) if (size := _capacity(row)) is not None]
    return CacheFigures(found.get(names.hits), found.get(names.queries), sum(sizes) if sizes else None)


def _capacity(row: dict[str, str]) -> float | None:
    """Tokens that one engine keeps. vLLM says so itself from 0.30 on; before, and where it does not know, by its blocks."""
    for factors in (("kv_cache_size_tokens",), ("num_gpu_blocks", "block_size")):
        tokens = 1.0
        for name in factors:
            try:
                tokens *= float(row[name])
            except (KeyError, ValueError):
                break
        else:
            if 0 < tokens < float("inf"):
                return tokens
    return None
