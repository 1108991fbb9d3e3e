"""Questions to one engine: is it up, does it move, and does it give a token. `/health` answers also where no request can be served."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from gpuserved.core.load import Scrape
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine
from gpuserved.telemetry.metrics_text import CAP_BYTES, scrape

log = logging.getLogger(__name__)

CANARY_TIMEOUT_S = 120.0
"""The first token may compile kernels; the start's own stall deadline goes on beside this."""
ANSWER_MAX_BYTES = 1024 * 1024
_NOT_SERVED = frozenset({400, 404, 405, 422, 501})
"""A model serves one kind of route (a pooling model has no completions): these say `not this one`."""


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
        self._model = engine.upstream_model(profile) or profile.served_name
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

    async def canary(self, timeout_s: float = CANARY_TIMEOUT_S) -> str | None:
        """What keeps one token from being had; None: nothing does.

        :param timeout_s: of each question.
        """
        return await _canary(self._session, self._base, self._model, timeout_s)

    async def figures(self) -> Scrape | None:
        """One scrape: None where there was no answer, and no figures where what was answered is not of use."""
        if self._metrics_path is None:
            return None
        answered = False
        try:
            async with self._session.get(self._base + self._metrics_path) as answer:
                answered = True
                text = await _bounded(answer.content) if answer.status == 200 else b""
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return Scrape() if answered else None
        return scrape(text, self._names)

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


@dataclass(frozen=True)
class _Question:
    """One request, and the list in its answer that must hold something."""

    path: str
    body: dict[str, Any]
    answer: str


def _questions(model: str) -> tuple[_Question, ...]:
    """The smallest request of each kind of model, the most common first."""
    limits = {"max_tokens": 1, "temperature": 0}
    messages = [{"role": "user", "content": "Hi"}]
    return (
        _Question("/v1/completions", {"model": model, "prompt": "Hi", **limits}, "choices"),
        _Question("/v1/chat/completions", {"model": model, "messages": messages, **limits}, "choices"),
        _Question("/v1/embeddings", {"model": model, "input": "Hi"}, "data"),
    )


async def _canary(
    session: aiohttp.ClientSession, base: str, model: str, timeout_s: float = CANARY_TIMEOUT_S
) -> str | None:
    """Ask until one route serves.

    :param timeout_s: of each question.
    :returns: what is wrong, for an operator; None: it answered, or serves no route that a canary knows (audio, rerank), and then
        its health has to do.
    """
    for question in _questions(model):
        try:
            status, body = await _post(session, base, question, timeout_s)
        except asyncio.TimeoutError:
            return f"canary: no answer from {question.path} within {timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"canary: {question.path} failed: {error or type(error).__name__}"
        if status in _NOT_SERVED:
            continue
        if status != 200:
            return f"canary: {question.path} answered {status}: {_first_line(body)}"
        return None if _holds(body, question.answer) else f"canary: {question.path} answered without a token"
    log.warning("no route of %s is one that a canary knows; its health alone admits it", model)
    return None


async def _post(
    session: aiohttp.ClientSession, base: str, question: _Question, timeout_s: float
) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.post(base + question.path, json=question.body, timeout=timeout) as answer:
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > ANSWER_MAX_BYTES:
                raise aiohttp.ClientPayloadError("the answer to one token has no end")
        return answer.status, bytes(body)


def _holds(body: bytes, key: str) -> bool:
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return isinstance(decoded, dict) and isinstance(decoded.get(key), list) and bool(decoded[key])


def _first_line(body: bytes) -> str:
    return body.decode(errors="replace").strip().splitlines()[0][:200] if body.strip() else "(empty)"
