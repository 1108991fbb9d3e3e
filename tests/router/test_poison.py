"""One request that kills engines, among 256 that do not: look-alike engines as real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from tests.router.bench import Bench, true

from gpuserved.api.routing import ModelRoute, ReplicaRoute

NEIGHBOURS = 256
TOKENS = 8
"""Eight seconds on the slow engines: all neighbours are in flight together well before the first would be answered."""
POISON = "the prompt that kills"
DAEMON = Path(__file__).resolve().parents[2] / "daemon"


class Engine:
    """One `sim` in a process group of its own."""

    def __init__(self, name: str, folder: Path, step_ms: int) -> None:
        self.name = name
        self.socket = folder / f"{name}.sock"
        self.step_ms = step_ms
        self._log = folder / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.socket.parent), "PYTHONPATH": str(DAEMON)}
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gpuserved.engines.sim", "serve", "sim/tiny", "--uds", str(self.socket),
                "--served-model-name", "m", "--step-ms", str(self.step_ms), "--crash-on-prompt", POISON,
                "--max-num-seqs", "512", stdout=log, stderr=log, env=env, start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def ready(self) -> bool:
        assert self.running, self._log.read_text()
        try:
            _, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        writer.close()
        return True

    async def close(self) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await self.process.wait()


def _model(*engines: Engine) -> ModelRoute:
    return ModelRoute(
        name="m", profile="m", queue=16,
        replicas=[
            ReplicaRoute(id=each.name, generation=1, address=f"unix:{each.socket}", admit=True) for each in engines
        ],
    )  # fmt: skip


async def _ask(bench: Bench, text: str) -> tuple[int, str]:
    answer = await bench.chat(
        messages=[{"role": "user", "content": text}], max_tokens=TOKENS, ignore_eos=True
    )
    return answer.status, answer.headers.get("x-gpuserve-replica", "")


@pytest.mark.fault(43)
async def test_256_neighbours_of_a_poison_request_survive_and_it_kills_three_replicas(bench: Bench) -> None:
    folder = Path(tempfile.mkdtemp(prefix="poison-"))
    slow = [Engine(name, folder, 1000) for name in ("a-0", "b-0")]
    quick = [Engine(name, folder, 1) for name in ("c-0", "d-0", "e-0")]
    engines = slow + quick
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        for engine in engines:
            await bench.until(engine.ready, 60)
        await bench.start(_model(slow[0]))
        asked = [asyncio.create_task(_ask(bench, f"order {n} is late")) for n in range(NEIGHBOURS)]

        async def all_in_flight() -> bool:
            return bool((await bench.stats())["replicas"][0]["in_flight"] == NEIGHBOURS)

        # The worst case: all of them unstarted on one replica when it dies, and again on the next one.
        await bench.until(all_in_flight)
        poison = asyncio.create_task(_ask(bench, POISON))
        await bench.until(lambda: true(not slow[0].running), 60)
        await bench.tell(_model(slow[1]))
        await bench.until(lambda: true(not slow[1].running), 60)
        await bench.tell(_model(*quick))
        assert (await poison)[0] == 502
        statuses = [await task for task in asked]
        assert [status for status, _ in statuses].count(200) == NEIGHBOURS
        # A server outlives its engine by a moment.
        await bench.until(lambda: true(sum(not engine.running for engine in engines) >= 3))
        assert sum(not engine.running for engine in engines) == 3
        stats = await bench.stats()
        assert (stats["in_flight"], stats["queued"], stats["cut_total"]) == (0, 0, 0)
        assert (await _ask(bench, "another one"))[0] == 200
    finally:
        await asyncio.gather(*(engine.close() for engine in engines))
        shutil.rmtree(folder, ignore_errors=True)
