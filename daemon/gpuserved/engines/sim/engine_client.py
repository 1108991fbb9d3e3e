"""The API server's view of EngineCore: requests out, tokens in, and the news of its death."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from gpuserved.engines.sim import processes
from gpuserved.engines.sim.metrics import Metrics

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class EngineDead(Exception):
    """EngineCore is gone."""

    def __init__(self, message: str = DEAD) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class Sampling:
    """What a request asks of the engine."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int = 0
    salt: str = ""
    stop_token_ids: tuple[int, ...] = ()


@dataclass
class _Running:
    prompt_tokens: int
    max_tokens: int
    queue: asyncio.Queue[tuple[list[int], str | None, int | None] | None] = field(
        default_factory=asyncio.Queue
    )
    arrived: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    produced: int = 0
    cached: int = 0
    admitted: float | None = None
    stopped: bool = False


class EngineClient:
    """Talks to one EngineCore over `peer`."""

    def __init__(self, peer: socket.socket, metrics: Metrics, on_death: Callable[[], None]) -> None:
        self._peer = peer
        self._metrics = metrics
        self._on_death = on_death
        self._running: dict[str, _Running] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.dead = False
        self._closed = False
        self.prompt_tokens = 0
        self.generation_tokens = 0

    def end_expected(self) -> None:
        """We stop it ourselves: its end is no news, and nothing more is asked of it."""
        self._closed = True

    @property
    def in_flight(self) -> int:
        """Requests that wait for tokens."""
        return len(self._running)

    async def start(self) -> None:
        """Begin to read."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._peer)
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lines = processes.Lines()
        try:
            while data := await reader.read(1 << 16):
                for message in lines.feed(data):
                    self._take(message)
        except ConnectionError:
            pass  # the same end
        if self._closed:
            return  # requests still open stay silent, as in vLLM
        self.dead = True
        for request in self._running.values():
            request.queue.put_nowait(None)
        self._on_death()

    def _take(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if "s" in message:
            self._metrics.step(message["s"])
        for name, cached in message.get("a", {}).items():
            if (request := self._running.get(name)) is not None:
                request.cached = cached
                request.admitted = request.admitted or now
        for name, tokens, reason, stop in message.get("o", ()):
            request = self._running.get(name)
            if request is None:
                continue
            self._count(request, len(tokens), now)
            request.queue.put_nowait((tokens, reason, stop))

    def _count(self, request: _Running, tokens: int, now: float) -> None:
        metrics = self._metrics
        if request.first is None:
            request.first = now
            metrics.observe("time_to_first_token_seconds", now - request.arrived)
            metrics.add("prompt_tokens", request.prompt_tokens)
            self.prompt_tokens += request.prompt_tokens
        else:
            metrics.observe("inter_token_latency_seconds", now - request.last, tokens)
        request.last = now
        request.produced += tokens
        self.generation_tokens += tokens
        metrics.add("generation_tokens", tokens)

    async def generate(
        self, name: str, prompt: list[int], sampling: Sampling, *, poison: bool = False, hang: bool = False
    ) -> AsyncGenerator[tuple[list[int], str | None, int | None], None]:
        """Tokens as they come: (ids, finish reason, the stop token that ended it). Leaving the loop aborts the request.

        :raises EngineDead: the engine is gone or being stopped.
        """
        if self.dead:
            raise EngineDead
        if self._closed:
            raise EngineDead("cannot schedule new futures after shutdown")
        request = _Running(len(prompt), sampling.max_tokens)
        self._running[name] = request
        self._post({
            "op": "add", "id": name, "prompt": prompt, "max_tokens": sampling.max_tokens, "min_tokens": sampling.min_tokens,
            "ignore_eos": sampling.ignore_eos, "seed": sampling.seed, "salt": sampling.salt,
            "stop_token_ids": sampling.stop_token_ids, "poison": poison, "hang": hang,
        })  # fmt: skip
        reason: str | None = None
        try:
            while reason is None:
                output = await request.queue.get()
                if output is None:
                    reason = "error"
                    raise EngineDead
                reason = output[1]
                yield output
        finally:
            del self._running[name]
            if reason is None:
                self._post({"op": "abort", "id": name})
                reason = "stop" if request.stopped else "abort"
            self._finished(request, reason)

    def stopped(self, name: str) -> None:
        """A stop string was found in the text: the request ends well, though not by the engine's doing."""
        if (request := self._running.get(name)) is not None:
            request.stopped = True

    def cached_tokens(self, name: str) -> int:
        """How much of a running request's prompt came from the cache."""
        request = self._running.get(name)
        return request.cached if request else 0

    def _finished(self, request: _Running, reason: str) -> None:
        metrics = self._metrics
        metrics.add("request_success/" + reason, 1)
        if reason not in {"stop", "length"} or request.first is None:
            return
        admitted = request.admitted or request.arrived
        metrics.observe("request_prompt_tokens", request.prompt_tokens)
        metrics.observe("request_generation_tokens", request.produced)
        metrics.observe("request_max_num_generation_tokens", request.produced)
        metrics.observe("request_params_n", 1)
        metrics.observe("request_params_max_tokens", request.max_tokens)
        metrics.observe("request_num_preemptions", 0)
        metrics.observe("request_prefill_kv_computed_tokens", request.prompt_tokens - request.cached)
        metrics.observe("e2e_request_latency_seconds", request.last - request.arrived)
        metrics.observe("request_queue_time_seconds", admitted - request.arrived)
        metrics.observe("request_inference_time_seconds", request.last - admitted)
        metrics.observe("request_prefill_time_seconds", request.first - admitted)
        metrics.observe("request_decode_time_seconds", request.last - request.first)
        gap = (request.last - request.first) / max(1, request.produced - 1)
        metrics.observe("request_time_per_output_token_seconds", gap)

    def post_crash(self, code: int | None) -> None:
        """Ask the engine to crash."""
        self._post({"op": "crash", "code": code})

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        self._post({"op": "reset"})

    def _post(self, message: dict[str, Any]) -> None:
        # Not awaited: an engine that is stopped must not stop the server too.
        if self._writer is not None and not self.dead:
            self._writer.write(processes.pack(message))
