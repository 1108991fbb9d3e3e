"""What the screen costs: CPU, memory, loop lag, first paint, key to repaint. Real control server, real socket, real pty.

make bench-tui            the figures of docs/tui.md
python -m tests.tui.bench --gpus 64 --seconds 20
python -m tests.tui.bench --against ../before     another checkout in the same rounds, and the ratios to it
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tests.tui.benchscreen import LAG_EVERY_S

REPOSITORY = Path(__file__).resolve().parents[2]
STARTS = 3
"""First paints in each round: one alone says little on a busy machine."""
MOVES = 60
Found = dict[str, float]


def environment(checkout: Path) -> dict[str, str]:
    """As an operator's shell has it, with the code of a checkout. Byte code is kept, as an installation keeps it."""
    left_out = {"SSH_CONNECTION", "NO_COLOR", "PYTHONDONTWRITEBYTECODE"}
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    code = [str(checkout / "tui"), str(checkout / "daemon"), str(REPOSITORY)]
    return kept | {
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "PYTHONPATH": os.pathsep.join([*code, *sys.path]),
    }


@contextlib.contextmanager
def serving(folder: Path, gpus: int, lines_per_s: int) -> Iterator[Path]:
    """A process of its own, as a daemon is: in this one it would hold up the clock."""
    command = [sys.executable, "-m", "tests.tui.benchserver", str(folder), str(gpus), str(lines_per_s)]
    process = subprocess.Popen(command, env=environment(REPOSITORY), cwd=REPOSITORY)
    try:
        while not (folder / "control.sock").exists():
            time.sleep(0.01)
        yield folder / "control.sock"
    finally:
        process.kill()
        process.wait()


class Terminal:
    """The screen in a pty, and everything it writes."""

    def __init__(self, command: list[str], size: tuple[int, int], checkout: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=slave, stdout=slave, stderr=slave, env=environment(checkout),
            cwd=REPOSITORY, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.read_bytes = 0

    @property
    def cpu_s(self) -> float:
        """User and system time so far, to a hundredth of a second."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def until(self, pattern: bytes, timeout_s: float) -> float:
        """Seconds until the screen has written this."""
        began, seen = time.perf_counter(), b""
        while time.perf_counter() - began < timeout_s:
            seen = (seen + self.pump(0.5))[-200_000:]
            if re.search(pattern, seen, re.DOTALL):
                return time.perf_counter() - began
        raise AssertionError(f"{pattern!r} did not come within {timeout_s} s; the end was {seen[-300:]!r}")

    def pump(self, timeout_s: float) -> bytes:
        """What has been written, or comes within this time."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return b""
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the program is gone, and its end of the terminal with it
            return b""
        self.read_bytes += len(data)
        return data

    def rest(self, seconds: float) -> None:
        """Read on for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump(0.05)

    def press(self, key: str) -> None:
        """Type."""
        os.write(self._master, key.encode())

    def quit(self) -> None:
        """Leave, and wait until it has."""
        self.press("q")
        while self.process.poll() is None:
            self.pump(0.1)
        os.close(self._master)


def first_paint(socket: Path, size: tuple[int, int], checkout: Path) -> Found:
    """Start the program: seconds until head, rows and total stand on the screen, and the CPU time they took."""
    terminal = Terminal(["-m", "gpuserve_tui.main", "--socket", str(socket)], size, checkout)
    terminal.until(rb"ready.*qwen-0.*ALL", 30)
    found = {"first_paint_s": time.perf_counter() - terminal.began, "first_paint_cpu_s": terminal.cpu_s}
    terminal.rest(0.2)
    terminal.quit()
    return found


def times(terminal: Terminal, keys: tuple[tuple[str, bytes], ...], rounds: int) -> list[float]:
    """Seconds from each key to the text that answers it."""
    found = []
    for _ in range(rounds):
        for key, pattern in keys:
            terminal.press(key)
            found.append(terminal.until(pattern, 10))
            terminal.rest(0.11)
    return found


def quantile(values: list[float], share: float) -> float:
    """Of a sample, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def at_work(socket: Path, seconds: float, size: tuple[int, int], checkout: Path) -> Found:
    """The screen as it runs: what it costs, and how soon it answers keys."""
    out = socket.with_name("lags.json")
    terminal = Terminal(["-m", "tests.tui.benchscreen", str(socket), str(out)], size, checkout)
    terminal.until(rb"ready.*ALL", 30)
    terminal.rest(4)
    process = psutil.Process(terminal.process.pid)
    before, began, wrote = terminal.cpu_s, time.perf_counter(), terminal.read_bytes
    terminal.rest(seconds)
    spent = (terminal.cpu_s - before) / (time.perf_counter() - began)
    written = (terminal.read_bytes - wrote) / seconds
    memory = process.memory_info().rss / 1e6
    before, began = terminal.cpu_s, time.perf_counter()
    moves = times(terminal, (("j", "▸".encode()), ("k", "▸".encode())), MOVES)
    keys = terminal.cpu_s - before - spent * (time.perf_counter() - began)
    switches = times(terminal, (("3", rb"process"), ("1", rb"Name")), 20)
    terminal.quit()
    lags = json.loads(out.read_text())[: max(1, int(seconds / LAG_EVERY_S))]
    return {
        "cpu_pct": 100 * spent, "memory_mb": memory, "lag_p99_ms": 1000 * quantile(lags, 0.99),
        "lag_max_ms": 1000 * max(lags), "key_p50_ms": 1000 * quantile(moves, 0.5),
        "key_p99_ms": 1000 * quantile(moves, 0.99), "key_cpu_ms": 1000 * keys / len(moves),
        "screen_p50_ms": 1000 * quantile(switches, 0.5), "screen_p95_ms": 1000 * quantile(switches, 0.95),
        "terminal_kb_per_s": written / 1000,
    }  # fmt: skip


def one_round(gpus: int, args: argparse.Namespace, checkouts: list[Path]) -> list[Found]:
    """Every checkout once, one after the other, on one daemon."""
    columns, rows = (int(part) for part in args.size.split("x"))
    found: list[Found] = [{} for _ in checkouts]
    with tempfile.TemporaryDirectory(prefix="gsb-") as name, serving(Path(name), gpus, args.lines) as socket:
        paints: list[list[Found]] = [[] for _ in checkouts]
        for _ in range(STARTS):
            for n, checkout in enumerate(checkouts):
                paints[n].append(first_paint(socket, (columns, rows), checkout))
        for n, checkout in enumerate(checkouts):
            for key in paints[n][0]:
                found[n][key] = statistics.median(each[key] for each in paints[n])
            if args.seconds:
                found[n] |= at_work(socket, args.seconds, (columns, rows), checkout)
    return found


def report(rounds: list[list[Found]]) -> None:
    """Lowest to highest of each figure; with a second checkout the ratio of each round to it."""
    for name in rounds[0][0]:
        values = [each[0][name] for each in rounds]
        line = f"  {name:18} {min(values):8.2f} .. {max(values):8.2f}"
        if len(rounds[0]) > 1:
            before = [each[1][name] for each in rounds]
            ratios = [a / b if b else float("nan") for a, b in zip(values, before, strict=True)]
            line += f"    against {min(before):8.2f} .. {max(before):8.2f}"
            line += f"    ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(line, flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--lines", type=int, default=1000, help="log lines a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="0: first paint alone")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", default="120x36")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another checkout, measured in the same rounds"
    )
    args = parser.parse_args()
    checkouts = [REPOSITORY, *([args.against.resolve()] if args.against else [])]
    for gpus in args.gpus:
        rounds = [one_round(gpus, args, checkouts) for _ in range(args.runs)]
        load = os.getloadavg()[0]
        print(f"{gpus} GPUs, {gpus} replicas, {args.lines} log lines/s, {args.size}, load {load:.1f}")
        report(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
