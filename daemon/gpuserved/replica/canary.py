"""One real token from a replica: `/health` answers also where no request can be served."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

log = logging.getLogger(__name__)

TIMEOUT_S = 120.0
"""The first token may compile kernels; the start's own stall deadline goes on beside this."""
ANSWER_MAX_BYTES = 1024 * 1024
_NOT_SERVED = frozenset({400, 404, 405, 422, 501})
"""A model serves one kind of route (a pooling model has no completions): these say `not this one`."""


@dataclass(frozen=True)
class Question:
    """One request, and the list in its answer that must hold something."""

    path: str
    body: dict[str, Any]
    answer: str


def questions(model: str) -> tuple[Question, ...]:
    """The smallest request of each kind of model, the most common first."""
    limits = {"max_tokens": 1, "temperature": 0}
    messages = [{"role": "user", "content": "Hi"}]
    return (
        Question("/v1/completions", {"model": model, "prompt": "Hi", **limits}, "choices"),
        Question("/v1/chat/completions", {"model": model, "messages": messages, **limits}, "choices"),
        Question("/v1/embeddings", {"model": model, "input": "Hi"}, "data"),
    )


async def ask(
    session: aiohttp.ClientSession, base: str, model: str, timeout_s: float = TIMEOUT_S
) -> str | None:
    """Ask until one route serves.

    :param timeout_s: of each question.
    :returns: what is wrong, for an operator; None: it answered, or serves no route that a canary knows (audio, rerank), and then
        its health has to do.
    """
    for question in questions(model):
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
    session: aiohttp.ClientSession, base: str, question: Question, timeout_s: float
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
