"""What starts real shims for the tests, and what they wait with."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuserved.host import shimclient as sc
from gpuserved.host.sweep import Sweep

DEADLINE_S = 30.0


async def until(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> Any:
    """The first truthy value of `condition`; fails with `what` at the deadline."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        await asyncio.sleep(0.02)
    pytest.fail(f"not within {within_s} s: {what}")


async def stopped(pid: int) -> None:
    """Wait until a process that was sent SIGSTOP has stopped: until then it may still act, or die of a later signal first."""
    await until(lambda: state(pid) == "T", f"{pid} is stopped")


def state(pid: int) -> str | None:
    """The kernel's letter for a process; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def alive(pid: int) -> bool:
    """True for a living process; a zombie is none."""
    return state(pid) not in {None, "Z", "X"}


@dataclass
class Yard:
    """Starts shims in one temporary folder."""

    top: Path
    count: int = 0
    shims: list[int] = field(default_factory=list)
    nonces: list[str] = field(default_factory=list)

    def spec(self, code: str | None = None, **changes: Any) -> dict[str, Any]:
        """A replica that runs `code` in this Python, or `argv` from `changes`."""
        self.count += 1
        nonce = f"{os.getpid():06x}{self.count:06x}"[-12:]
        self.nonces.append(nonce)
        folder = self.top / nonce
        folder.mkdir(mode=0o700)
        argv = (sys.executable, "-I", "-S", "-u", "-c", code or "import time; time.sleep(600)")
        spec = sc.replica_spec(
            replica="demo-0", generation=self.count, nonce=nonce, folder=folder, argv=argv,
            env={"PATH": "/usr/bin:/bin"}, cwd="/", log_path=folder / "log" / "1.log",
            log_max_bytes=1 << 20, log_keep=2, orphan_ttl_s=None, drain_s=0, term_grace_s=5,
        )  # fmt: skip
        return spec | changes

    async def launch(self, spec: dict[str, Any], **options: Any) -> sc.Started:
        """Start it and remember it for the clean-up."""
        started = await sc.launch(spec, **options)
        self.shims.append(started.shim_pid)
        return started

    async def run(self, code: str | None = None, **changes: Any) -> tuple[Path, sc.Started]:
        """`spec` and `launch` in one; returns the run folder."""
        spec = self.spec(code, **changes)
        return Path(str(spec["dir"])), await self.launch(spec)

    async def exit(self, folder: Path) -> sc.ExitRecord:
        """Wait for exit.json."""
        record = await until(lambda: sc.read_exit(folder), "exit.json")
        assert isinstance(record, sc.ExitRecord)
        return record

    def clean(self) -> None:
        """End whatever a test left."""
        for pid in self.shims:
            if alive(pid) and b"shim/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        for nonce in self.nonces:
            Sweep(nonce).strike()


Connect = Callable[..., Awaitable[sc.ShimConnection]]
"""(folder, who) -> a connection that is closed after the test; with `who` it has said hello."""
WaitUntil = Callable[..., Awaitable[Any]]
IsAlive = Callable[[int], bool]
