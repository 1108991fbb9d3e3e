"""What a scrape of `/metrics` says: figures, an answer without any, or no answer at all."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpuserved.core.load import Scrape
from gpuserved.core.profile import EngineName, HealthPolicy, Profile
from gpuserved.engines.registry import Engines
from gpuserved.replica.probe import Prober

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
STEPS = b'vllm:iteration_tokens_total_count{engine="0"} 7.0\nvllm:num_requests_running{engine="0"} 2.0\n'


@asynccontextmanager
async def answering(answer: bytes, *, ends: bool = True) -> AsyncIterator[Prober]:
    """A prober of an engine that answers every request with these bytes, and then hangs up or falls silent."""

    served: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(over := asyncio.Event())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not ends:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    with tempfile.TemporaryDirectory(prefix="gs-prober-") as folder:  # short: socket paths must fit
        path = Path(folder) / "engine.sock"
        server = await asyncio.start_unix_server(serve, str(path))
        health = HealthPolicy(timeout_s=0.3)
        profile = Profile("p", "sim/tiny", "p", engine=EngineName.SIM, health=health)
        prober = Prober(f"unix:{path}", Engines(Path(folder)).get(profile), profile)
        async with server:
            yield prober
            await prober.close()
            await asyncio.gather(*(over.wait() for over in served))
        await server.wait_closed()


async def scraped(answer: bytes, *, ends: bool = True) -> Scrape | None:
    async with answering(answer, ends=ends) as prober:
        return await prober.figures()


async def test_figures() -> None:
    found = await scraped(HEAD + b"\r\n" + STEPS)
    assert found is not None
    assert (found.steps, found.running) == (7.0, 2.0)


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", True),
        (HEAD + b"\r\n" + STEPS.replace(b"7.0", b"NaN").replace(b"2.0", b"NaN"), True),
        (HEAD + b"content-length: 999\r\n\r\n", True),
        (HEAD + b"content-length: 999\r\n\r\n", False),
    ],
    ids=["error-page", "no-such-route", "not-a-number", "broken-off", "never-ends"],
)
async def test_an_answer_without_a_use_is_an_answer(answer: bytes, *, ends: bool) -> None:
    """Its engine is not judged by it. Taken for silence it would be killed as hung while it serves."""
    found = await scraped(answer, ends=ends)
    assert found is not None
    assert (found.steps, found.running) == (None, None)


@pytest.mark.parametrize("ends", [True, False], ids=["hangs-up", "silent"])
async def test_no_answer(*, ends: bool) -> None:
    assert await scraped(b"", ends=ends) is None
