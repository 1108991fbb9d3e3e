"""Row 33: the kernel kills a replica for memory. A real cgroup with a real limit, and a real OOM killer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.box import Box, kill
from tests.e2e.stage import Stage
from tests.e2e.texts import RESTART, sim
from tests.faults.table import Measured

from gpuserved.host import procfs

LIMIT_BYTES = 4 * 1024 * 1024
HUNGER = "import sys\nsys.stdin.read()\nheld = bytearray(64 * 1024 * 1024)\nheld[::4096] = b'x' * len(held[::4096])\n"
"""A process that takes 64 MiB once it has been put into its cgroup."""


class Cgroup:
    """A cgroup of this test's own, of the version that has the memory controller."""

    def __init__(self, name: str) -> None:
        here = procfs.memory_cgroup_of(os.getpid())
        first = Path("/sys/fs/cgroup/memory")
        parent = first if first.is_dir() else (here or Path("/sys/fs/cgroup"))
        self.path = parent / f"gpuserve-test-{os.getpid()}-{name}"
        self._limit = "memory.limit_in_bytes" if parent == first else "memory.max"
        try:
            self.path.mkdir()
            (self.path / self._limit).write_text(str(LIMIT_BYTES))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            pytest.skip(f"OOM KILLS ARE NOT TESTED: no cgroup with a memory limit may be made: {error}")

    def take(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def hungry(self) -> int:
        """The exit code of a process that takes more than there is."""
        with subprocess.Popen([sys.executable, "-c", HUNGER], stdin=subprocess.PIPE) as process:
            self.take(process.pid)
            process.communicate(timeout=60)
        return process.returncode

    def remove(self) -> None:
        deadline = time.monotonic() + 20
        while self.path.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            time.sleep(0.05)


@pytest.fixture
def starved() -> Iterator[Cgroup]:
    made = Cgroup("starved")
    yield made
    made.remove()


@pytest.mark.fault(33)
def test_a_replica_that_the_kernel_kills_for_memory_says_so(
    stage: Stage, starved: Cgroup, measured: Measured
) -> None:
    """Its cgroup runs out of memory, and it is the one that the kernel chooses."""
    stage.both_ready()
    before = stage.replica("tiny-0")
    victim = before["pid"]
    starved.take(victim)
    Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
    time.sleep(1.5)  # a round of probes sees where it is now
    at = time.monotonic()
    starved.hungry()
    after = stage.wait_restarted(before, stage.flavour.start_s)
    measured.recover_s = time.monotonic() - at
    assert "OOM-killed" in after["reason"], after["reason"]
    assert "OOM-killed" in stage.ok("crash", "tiny-0")


@pytest.mark.fault(33)
def test_a_strangers_death_explains_no_other(box: Box, starved: Cgroup) -> None:
    """A kill by hand in the moment when another process of the host is killed for memory is a kill by hand."""
    box.up({"tiny": sim("tiny", replicas=1, flags={"load_s": 0.2}, tables={"restart": RESTART})})
    before = box.replica("tiny-0")
    if procfs.memory_cgroup_of(before["pid"]) is None:
        pytest.skip("OOM KILLS ARE NOT TOLD APART BY CGROUP: none with a memory controller can be read here")
    host = procfs.oom_kills() or 0
    assert starved.hungry() == -9
    assert (procfs.oom_kills() or 0) > host
    kill(before["pid"])
    after = box.wait_restarted(before, 90)
    assert "SIGKILL" in after["reason"]
    assert "OOM" not in after["reason"]
