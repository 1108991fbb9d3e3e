import asyncio
import subprocess
import sys
import threading
import time

import pytest

from gpuserved.core.placement import GpuInfo
from gpuserved.telemetry.provider import GpuSample
from gpuserved.telemetry.sampler import Sampler


class Gated:
    """A provider whose driver hangs while `gate` is shut."""

    name = "gated"
    reason: str | None = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.calls = 0

    def inventory(self) -> list[GpuInfo]:
        self.gate.wait(110)
        return [GpuInfo(0, "GPU-0", "H100", 80)]

    def sample(self) -> list[GpuSample]:
        self.calls += 1
        self.gate.wait(110)
        return [GpuSample(0, "GPU-0", 5, 80)]


@pytest.mark.fault(17)
async def test_a_hanging_driver_blocks_nobody_and_is_named() -> None:
    provider = Gated()
    sampler = Sampler(provider, deadline_s=60)
    assert len(await sampler.inventory()) == 1
    assert (await sampler.sample())[0].memory_used_bytes == 5
    provider.gate.clear()
    sampler._deadline_s = 0.2
    stuck = await sampler.sample()
    assert stuck == [GpuSample(0, "GPU-0", memory_total_bytes=80)]
    sampler._deadline_s = 3600  # while stuck, answers come at once: nobody waits for this
    assert (await sampler.sample())[0].memory_used_bytes is None
    assert [info.uuid for info in await sampler.inventory()] == ["GPU-0"]
    assert "has not answered" in str(sampler.reason)
    assert provider.calls == 2, "no second call queues up behind a stuck one"
    provider.gate.set()
    end = time.monotonic() + 60
    while (await sampler.sample())[0].memory_used_bytes is None:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    assert sampler.reason is None
    sampler.close()


async def test_calls_at_once_take_turns() -> None:
    sampler = Sampler(Gated(), deadline_s=60)
    infos, samples, again = await asyncio.gather(sampler.inventory(), sampler.sample(), sampler.sample())
    assert len(infos) == 1
    assert samples[0].memory_used_bytes == again[0].memory_used_bytes == 5
    sampler.close()


async def test_an_error_of_the_provider_is_the_callers() -> None:
    class Broken(Gated):
        def sample(self) -> list[GpuSample]:
            raise ValueError("no such thing")

    sampler = Sampler(Broken(), deadline_s=60)
    with pytest.raises(ValueError, match="no such thing"):
        await sampler.sample()
    assert len(await sampler.inventory()) == 1
    sampler.close()


def test_a_stuck_driver_does_not_keep_a_process_from_ending() -> None:
    code = (
        "import asyncio, time\n"
        "from gpuserved.telemetry.sampler import Sampler\n"
        "class Stuck:\n"
        "    name = 'stuck'; reason = None\n"
        "    def inventory(self): time.sleep(600)\n"
        "    sample = inventory\n"
        "print(asyncio.run(Sampler(Stuck(), deadline_s=0.1).inventory()))\n"
    )
    path = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
