"""What the screen costs: CPU, memory, loop lag, first paint, key to repaint. Real socket, real control server, real pty.

make bench-tui            the figures of docs/tui.md
python -m tests.tui.bench --gpus 64 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import random
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from tests.tui.benchscreen import LAG_EVERY_S
from tests.tui.fleets import many

from gpuserved.api.gpus import GpusResult
from gpuserved.api.inspect import EventsView, ProfilesView, ReplicaDetail
from gpuserved.api.plan import Plan
from gpuserved.api.types import ActionResult, ApplyResult, Status
from gpuserved.control.server import ControlServer
from gpuserved.fleet.bus import Bus, Subscription

REPOSITORY = Path(__file__).resolve().parents[2]
LINE = "(EngineCore pid=4711) INFO 11-24 02:02:42 [loggers.py:271] Engine 000: Avg prompt throughput: {0:.1f} tokens/s, Avg generation throughput: 2811.0 tokens/s, Running: 64 reqs, Waiting: 14 reqs, GPU KV cache usage: 97.1%\n"


class BenchFleet:
    """Implements `FleetPort` and `InspectionPort` for a screen that only looks: every figure changes every second."""

    def __init__(self, gpus: int, log: Path) -> None:
        self._base = many(gpus)
        self._log = log
        self.bus = Bus(self.status, lambda: 4, time.time)

    @property
    def inspection(self) -> Any:
        return self

    async def look(self) -> None:
        """Nothing here is older than a moment."""

    def status(self) -> Status:
        replicas = [
            msgspec.structs.replace(
                r, running=random.randrange(64), waiting=random.randrange(9), in_flight=random.randrange(80),
                kv_cache_pct=random.uniform(0, 99),
            )
            for r in self._base.replicas
        ]  # fmt: skip
        gpus = [
            msgspec.structs.replace(
                g, utilization_pct=random.uniform(0, 100), power_w=random.uniform(300, 700)
            )
            for g in self._base.gpus
        ]
        return msgspec.structs.replace(self._base, replicas=replicas, gpus=gpus)

    def subscribe(self) -> Subscription:
        return self.bus.subscribe()

    def events(self) -> EventsView:
        return EventsView()

    def profiles(self) -> ProfilesView:
        return ProfilesView(generation=4)

    def detail(self, replica: str) -> ReplicaDetail:
        return ReplicaDetail(replica=next(r for r in self._base.replicas if r.id == replica))

    def all_logs(self, replica: str) -> list[Path]:
        return [self._log] if replica == self._base.replicas[0].id else []

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        return [] if previous else self.all_logs(replica)

    def daemon_log(self) -> list[Path]:
        return [self._log]

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        return ApplyResult(generation=4)

    async def apply(self, request: object) -> ApplyResult:
        return ApplyResult(generation=4)

    async def plan(self, request: object) -> Plan:
        return Plan(fits=True)

    async def act(self, verb: str, request: object) -> ActionResult:
        return ActionResult(generation=4)

    async def scale(self, request: object) -> ActionResult:
        return ActionResult(generation=4)

    async def quarantine_gpus(self, request: object) -> GpusResult:
        return GpusResult(generation=4)

    async def release_gpus(self, request: object) -> GpusResult:
        return GpusResult(generation=4)

    async def reload(self) -> ApplyResult:
        return ApplyResult(generation=4)

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        return None


def serve(folder: Path, gpus: int, lines_per_s: int) -> None:
    """Run the control server in threads of this process."""
    log = folder / "1.log"
    log.touch()

    async def run() -> None:
        fleet = BenchFleet(gpus, log)
        await ControlServer(fleet, folder / "control.sock").start()
        while True:
            fleet.bus.publish("telemetry", status=fleet.status())
            await asyncio.sleep(1.0)

    def write() -> None:
        with log.open("a", encoding="utf-8") as file:
            due = time.monotonic()
            while True:
                due += 0.1
                file.write("".join(LINE.format(random.random()) for _ in range(lines_per_s // 10)))
                file.flush()
                time.sleep(max(0.0, due - time.monotonic()))

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    threading.Thread(target=write, daemon=True).start()
    while not (folder / "control.sock").exists():
        time.sleep(0.01)


class Terminal:
    """The screen in a pty, and everything it writes."""

    def __init__(self, command: list[str], columns: int, rows: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in {"SSH_CONNECTION", "NO_COLOR"}}
        environment |= {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "PYTHONPATH": ":".join([str(REPOSITORY), *sys.path]),
        }
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        os.close(slave)
        self.read_bytes = 0

    def until(self, pattern: bytes, timeout_s: float) -> float:
        """Seconds until the screen has written this."""
        began, seen = time.perf_counter(), b""
        while time.perf_counter() - began < timeout_s:
            seen = (seen + self.pump(0.5))[-200_000:]
            if re.search(pattern, seen):
                return time.perf_counter() - began
        raise AssertionError(f"{pattern!r} did not come within {timeout_s} s; the end was {seen[-300:]!r}")

    def pump(self, timeout_s: float) -> bytes:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return b""
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the program is gone, and its end of the terminal with it
            return b""
        self.read_bytes += len(data)
        return data

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())


def _times(terminal: Terminal, keys: tuple[tuple[str, bytes], ...], rounds: int) -> list[float]:
    """Seconds from each key to the text that answers it."""
    found = []
    for _ in range(rounds):
        for key, pattern in keys:
            terminal.press(key)
            found.append(terminal.until(pattern, 10))
            pause = time.monotonic() + 0.11
            while time.monotonic() < pause:
                terminal.pump(0.05)
    return found


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(gpus: int, lines_per_s: int, seconds: float, size: tuple[int, int]) -> dict[str, float]:
    """One run."""
    with tempfile.TemporaryDirectory(prefix="gsb-") as name:
        folder, out = Path(name), Path(name) / "lags.json"
        serve(folder, gpus, lines_per_s)
        command = [sys.executable, "-m", "tests.tui.benchscreen", str(folder / "control.sock"), str(out)]
        terminal = Terminal(command, *size)
        terminal.until(rb"ready", 30)
        first_s = time.perf_counter() - terminal.began
        first_cpu_s = sum(psutil.Process(terminal.process.pid).cpu_times()[:2])
        end = time.monotonic() + 4
        while time.monotonic() < end:
            terminal.pump(0.1)
        process = psutil.Process(terminal.process.pid)
        before, began, wrote = sum(process.cpu_times()[:2]), time.perf_counter(), terminal.read_bytes
        while time.perf_counter() - began < seconds:
            terminal.pump(0.1)
        spent = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
        written = (terminal.read_bytes - wrote) / seconds
        memory = process.memory_info().rss / 1e6
        switches = _times(terminal, (("3", rb"process"), ("1", rb"Name")), 20)
        moves = _times(terminal, (("j", "▸".encode()), ("k", "▸".encode())), 60)
        terminal.press("q")
        while terminal.process.poll() is None:
            terminal.pump(0.1)
        lags = json.loads(out.read_text())
    lags = lags[: max(1, int(seconds / LAG_EVERY_S))]
    return {
        "cpu_pct": 100 * spent, "memory_mb": memory, "lag_p99_ms": 1000 * quantile(lags, 0.99),
        "lag_max_ms": 1000 * max(lags), "first_paint_s": first_s, "first_paint_cpu_s": first_cpu_s, "key_p50_ms": 1000 * quantile(moves, 0.5),
        "key_p99_ms": 1000 * quantile(moves, 0.99), "screen_p50_ms": 1000 * quantile(switches, 0.5),
        "screen_p95_ms": 1000 * quantile(switches, 0.95), "terminal_kb_per_s": written / 1000,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--lines", type=int, default=1000, help="log lines a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", default="120x36")
    args = parser.parse_args()
    columns, rows = (int(part) for part in args.size.split("x"))
    for gpus in args.gpus:
        found = [measure(gpus, args.lines, args.seconds, (columns, rows)) for _ in range(args.runs)]
        print(
            f"{gpus} GPUs, {gpus} replicas, {args.lines} log lines/s, {args.size}, load {os.getloadavg()[0]:.1f}"
        )
        for name in found[0]:
            values = [one[name] for one in found]
            print(
                f"  {name:18} {min(values):8.2f} .. {max(values):8.2f}"
                if args.runs > 1
                else f"  {name:18} {values[0]:8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
