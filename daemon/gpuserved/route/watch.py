"""Watching one upstream: is it healthy, and what does it serve?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from gpuserved.core.upstream import Check, UpstreamRow, observe
from gpuserved.route.address import Address
from gpuserved.router.fetch import Fetched, fetch

PROBE_S = 2.0
MODELS_EVERY_S = 30.0
"""LoRA adapters come and go while a server runs."""
TIMEOUT_S = 3.0
MODELS_PATH = "/v1/models"
MODELS_MAX_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


class Watch:
    """One upstream. `on_change` is called whenever its row or its models have changed."""

    def __init__(self, where: Address, health_path: str, on_change: Callable[[], None]) -> None:
        self.where = where
        self.health_path = health_path
        self.row = UpstreamRow()
        self.models: tuple[str, ...] = ()
        """Names it served last; kept while it is away."""
        self._on_change = on_change
        self._models_at = float("-inf")
        self._complained = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, then go on looking."""
        await self._look()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    def refresh(self) -> None:
        """Ask for its models at the next look."""
        self._models_at = float("-inf")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await self._look()
            except Exception:
                log.exception("%s: the health check failed", self.where.id)

    async def _look(self) -> None:
        before = self.row, self.models
        answer = await fetch(self.where.address, self.health_path, TIMEOUT_S)
        if answer.status == 404 and self.health_path != MODELS_PATH:
            # Not every OpenAI-compatible server has vLLM's /health.
            log.info("%s: no %s; %s is its health check", self.where.id, self.health_path, MODELS_PATH)
            self.health_path = MODELS_PATH
            answer = await fetch(self.where.address, MODELS_PATH, TIMEOUT_S)
        self.row = observe(before[0], _check(answer))
        now = asyncio.get_running_loop().time()
        came = self.row.up and not before[0].up
        if self.row.up and (came or not self.models or now - self._models_at >= MODELS_EVERY_S):
            self._models_at = now
            await self._read_models()
        if self.row.up != before[0].up or before[0].said is None:
            self._report(answer)
        elif self.models != before[1]:
            log.info("%s: serves %s", self.where.id, ", ".join(self.models))
        if (self.row, self.models) != before:
            self._on_change()

    def _report(self, answer: Fetched) -> None:
        if self.row.up:
            log.info("%s: up, serves %s", self.where.id, ", ".join(self.models) or "no model it names")
            return
        why = {
            Check.REFUSED: "nobody listens there",
            Check.FAILING: f"{self.health_path} answers {answer.status}",
            Check.SILENT: f"no answer within {TIMEOUT_S:g} s",
        }
        log.warning("%s: down: %s", self.where.id, why.get(_check(answer), ""))

    async def _read_models(self) -> None:
        answer = await fetch(self.where.address, MODELS_PATH, TIMEOUT_S, body_max_bytes=MODELS_MAX_BYTES)
        names = _names(answer.body) if answer.status == 200 else None
        if names:
            self.models = names
            self._complained = False
        elif not self._complained:
            self._complained = True
            what = f"answers {answer.status}" if answer.status not in {200, None} else "names no model"
            log.warning("%s: %s %s; --model NAME serves it without", self.where.id, MODELS_PATH, what)


def _check(answer: Fetched) -> Check:
    if answer.status is None:
        return Check.REFUSED if answer.refused else Check.SILENT
    return Check.OK if answer.status == 200 else Check.FAILING


def _names(body: bytes) -> tuple[str, ...] | None:
    """Ids of a list of models; None: it is not one."""
    try:
        found: Any = msgspec.json.decode(body)
        return tuple(dict.fromkeys(str(card["id"]) for card in found["data"]))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None
