"""From engine tokens to text: detokenizing, stop strings, several choices at once, and the faults that strike in mid-stream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from gpuserved.engines.sim.body import Wanted
from gpuserved.engines.sim.engine_client import EngineClient, Sampling
from gpuserved.engines.sim.httpd import Request, forever
from gpuserved.engines.sim.sabotage import Sabotage
from gpuserved.engines.sim.tokens import EOS, decode, encode


@dataclass(frozen=True)
class Piece:
    """What one token adds to one choice."""

    choice: int
    text: str
    tokens: int
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass
class Whole:
    """One finished choice."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = "length"
    stop_reason: str | int | None = None


class _Text:
    """Text so far; holds back what could become a stop string."""

    def __init__(self, wanted: Wanted) -> None:
        self._stops = wanted.stop
        self._include_stop = wanted.include_stop
        self._hold = max((len(stop) for stop in wanted.stop), default=1) - 1
        self._text = ""
        self._sent = 0

    def feed(self, text: str, *, last: bool) -> tuple[str, str | None]:
        """What may go out now, and the stop string that ends it."""
        self._text += text
        hits = [(at, stop) for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if hits:
            at, stop = min(hits)
            end = at + len(stop) if self._include_stop else at
            return self._take(max(end, self._sent)), stop
        return self._take(len(self._text) if last else max(self._sent, len(self._text) - self._hold)), None

    def _take(self, end: int) -> str:
        out = self._text[self._sent : end]
        self._sent = end
        return out


@dataclass(frozen=True)
class Generator:
    """Makes choices for requests."""

    engine: EngineClient
    sabotage: Sabotage

    async def pieces(
        self, name: str, prompts: list[list[int]], wanted: Wanted
    ) -> AsyncGenerator[Piece, None]:
        """All choices of a request as they grow: `n` for each prompt.

        :raises EngineDead: the engine is gone.
        """
        total = len(prompts) * wanted.n
        if total == 1:
            async with aclosing(self._choice(name, prompts[0], wanted, 0)) as grown:
                async for piece in grown:
                    yield piece
            return
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._pump(queue, f"{name}-{at}", prompts[at // wanted.n], wanted, at))
            for at in range(total)
        ]
        try:
            open_choices = total
            while open_choices:
                item = await queue.get()
                if item is None:
                    open_choices -= 1
                elif isinstance(item, Piece):
                    yield item
                else:
                    raise item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self,
        queue: asyncio.Queue[Piece | BaseException | None],
        name: str,
        prompt: list[int],
        wanted: Wanted,
        at: int,
    ) -> None:
        try:
            async with aclosing(self._choice(name, prompt, wanted, at)) as grown:
                async for piece in grown:
                    queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    async def _choice(
        self, name: str, prompt: list[int], wanted: Wanted, at: int
    ) -> AsyncGenerator[Piece, None]:
        text = _Text(wanted)
        asked = wanted.sampling
        sampling = Sampling(
            asked.max_tokens, asked.min_tokens, asked.ignore_eos, asked.seed + at % wanted.n, asked.salt,
            asked.stop_token_ids,
        )  # fmt: skip
        poison, hang = self.sabotage.of_prompt(prompt)
        sent = 0
        outputs = self.engine.generate(name, prompt, sampling, poison=poison, hang=hang)
        async with aclosing(outputs) as output:
            async for tokens, reason, stop_token in output:
                sent += len(tokens)
                added = decode(token for token in tokens if token != EOS)
                grown, stop = text.feed(added, last=reason is not None)
                if stop is not None:
                    self.engine.stopped(name)
                    yield Piece(at, grown, len(tokens), "stop", stop)
                    return
                yield Piece(at, grown, len(tokens), reason, stop_token)
                if wanted.stream:
                    self.sabotage.after_tokens(sent)
                    if self.sabotage.stalls_at(sent):
                        await forever()

    async def whole(self, name: str, prompts: list[list[int]], wanted: Wanted) -> list[Whole]:
        """All choices of a request, finished."""
        found = [Whole() for _ in range(len(prompts) * wanted.n)]
        async with aclosing(self.pieces(name, prompts, wanted)) as pieces:
            async for piece in pieces:
                choice = found[piece.choice]
                choice.text += piece.text
                choice.tokens += piece.tokens
                if piece.finish_reason:
                    choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        return found


def request_id(request: Request) -> str:
    """The client's X-Request-Id, or 16 hex digits."""
    return request.headers.get("x-request-id") or secrets.token_hex(8)


def usage(prompt_tokens: int, completion_tokens: int, **more: object) -> dict[str, object]:
    """The usage object, in vLLM's order."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        **more,
    }


def text_tokens(text: str) -> list[int]:
    """The tokens of a plain prompt."""
    return encode(text)
