"""Questions to one engine: is it up, and does it move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp

from gpuserved.core.load import Counters
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine, MetricNames
from gpuserved.replica import canary
from gpuserved.telemetry.metrics_text import CAP_BYTES, histogram, read


@dataclass(frozen=True)
class EngineFigures:
    """One scrape; None: the engine does not say."""

    running: float | None = None
    waiting: float | None = None
    kv_cache_pct: float | None = None
    steps: float | None = None
    counters: Counters = field(default_factory=Counters, repr=False)


class Prober:
    """Probes one address. Each answer is read to its end, within a deadline and a size."""

    def __init__(self, address: str, engine: Engine, profile: Profile) -> None:
        scheme, _, rest = address.partition(":")
        if scheme == "unix":
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(rest, limit=4)
            self._base = "http://localhost"
        else:
            connector = aiohttp.TCPConnector(limit=4, use_dns_cache=False)
            self._base = f"http://{rest}"
        self._health_path = engine.health_path(profile)
        self._metrics_path = engine.metrics_path(profile)
        self._names = engine.metrics
        self.engine_dead = False
        """Its last health answer was 503: vLLM says so while its engine is dead and itself not yet gone."""
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=profile.health.timeout_s),
            trust_env=False,
            auto_decompress=False,
            max_line_size=16_384,
        )

    async def healthy(self) -> bool:
        """True where the health route answers 200 in time."""
        try:
            async with self._session.get(self._base + self._health_path) as answer:
                await answer.content.read(4096)
                self.engine_dead = answer.status == 503
                return answer.status == 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return False

    async def canary(self, model: str, timeout_s: float = canary.TIMEOUT_S) -> str | None:
        """What keeps one token from being had; None: nothing does."""
        return await canary.ask(self._session, self._base, model, timeout_s)

    async def figures(self) -> EngineFigures | None:
        """One scrape: None where there was no answer, and no figures where what was answered is not of use."""
        if self._metrics_path is None:
            return None
        answered = False
        try:
            async with self._session.get(self._base + self._metrics_path) as answer:
                answered = True
                text = await _bounded(answer.content) if answer.status == 200 else b""
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return EngineFigures() if answered else None
        return _figures(text, self._names)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    left = CAP_BYTES
    while left > 0 and (part := await content.readany()):
        parts.append(part[:left])
        left -= len(part)
    return b"".join(parts)


def _figures(text: bytes, names: MetricNames) -> EngineFigures:
    scalars = (
        names.running, names.waiting, names.kv_cache_ratio, names.steps, names.prompt_tokens,
        names.generation_tokens, names.prefix_queries, names.prefix_hits, names.preemptions,
    )  # fmt: skip
    found = read(text, frozenset(name for name in scalars if name is not None))
    ratio = found.get(names.kv_cache_ratio or "")
    return EngineFigures(
        running=found.get(names.running or ""),
        waiting=found.get(names.waiting or ""),
        kv_cache_pct=None if ratio is None else ratio * 100,
        steps=found.get(names.steps or ""),
        counters=Counters(
            prompt_tokens=found.get(names.prompt_tokens or ""),
            generation_tokens=found.get(names.generation_tokens or ""),
            prefix_queries=found.get(names.prefix_queries or ""),
            prefix_hits=found.get(names.prefix_hits or ""),
            preemptions=found.get(names.preemptions or ""),
            ttft=histogram(text, names.ttft) if names.ttft else {},
            itl=histogram(text, names.itl) if names.itl else {},
        ),
    )
