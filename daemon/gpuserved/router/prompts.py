"""Which prompts went where: what this router sent, what its peers say they sent, and what the engines say came of it."""

from __future__ import annotations

import asyncio
import logging

from gpuserved.core.policy.base import Ties
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.router.figures import cache_figures
from gpuserved.router.peers import Peers
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Fleet

TICK_S = 1.0
FIGURES_S = 5.0
"""Between two looks at an engine's counters. vLLM writes 100 KB for each; a cache does not change its ways in seconds."""

log = logging.getLogger(__name__)


class Prompts:
    """Keeps the mirrors of the replicas of models whose policy is `prefix`; idle where there are none."""

    def __init__(self, fleet: Fleet, control_path: str) -> None:
        self._fleet = fleet
        self._peers = Peers(control_path)
        self._figures_at = 0.0

    def tied(self) -> list[Replica]:
        """The replicas that are chosen by prompt."""
        models = (m for m in self._fleet.models.values() if m.policy.ties is Ties.PREFIX)
        return list(dict.fromkeys(entry.replica for model in models for entry in model.entries))

    def tell(self, replica: Replica, key: PrefixKey, now: float) -> None:
        """The peers hear of it."""
        self._peers.tell(replica.identity, replica.generation, key, now)

    def hear(self, now: float) -> None:
        """Take in what the peers told; once before each choice."""
        for note in self._peers.hear():
            replica = self._fleet.started(note.identity, note.generation)
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
    figures = await cache_figures(replica.address, replica.cache_metrics)
    if figures is None:
        return
    if figures.capacity_tokens is not None:
        replica.mirror.learn_capacity(figures.capacity_tokens)
    if figures.hits is not None and figures.queries is not None:
        replica.mirror.learn_counters(figures.hits, figures.queries)
