"""Looks at /proc all the time and at all roots: never may two engines of one replica, or on one GPU, be alive at once."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from gpuserved.host import procfs

EVERY_S = 0.1
YOUNG = 15
"""Looks at a new process before it is taken for something else: between fork and exec it still looks like its parent."""
_SOCKET = re.compile(rb"(/[^\0]*)/r/([0-9a-f]{12})/engine\.sock")


@dataclass(frozen=True)
class Engine:
    """The API process of one start."""

    pid: int
    ticks: int
    run: str
    nonce: str
    replica: str
    generation: int
    gpu: str
    mark: str

    def lives(self) -> bool:
        """A zombie does not."""
        return procfs.is_same(self.pid, self.ticks)

    def __str__(self) -> str:
        return f"PID {self.pid} ({self.replica} on GPU {self.gpu}, start {self.nonce})"


class Census(threading.Thread):
    """One for all runs of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="census")
        self._ended = threading.Event()
        self._engines: dict[int, Engine] = {}
        self._looked_at: dict[int, int] = {}
        self._wrong: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self.scans = 0

    def run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._scan()

    def end(self) -> None:
        self._ended.set()
        self.join(10)

    def engines(self, run: Path) -> list[Engine]:
        """Those of one root that live now, freshly looked at."""
        self._scan()
        with self._lock:
            return [each for each in self._engines.values() if each.run == str(run) and each.lives()]

    def wrong(self, run: Path) -> list[str]:
        """What was seen in one root that must never be."""
        with self._lock:
            return list(self._wrong.get(str(run), ()))

    def _scan(self) -> None:
        with self._lock:
            self.scans += 1
            now = {int(name) for name in os.listdir("/proc") if name.isdigit()}
            for gone in self._looked_at.keys() - now:
                del self._looked_at[gone]
                self._engines.pop(gone, None)
            for pid in sorted(now):
                looks = self._looked_at.get(pid, 0)
                if looks < YOUNG:
                    self._looked_at[pid] = looks + 1
                    self._look(pid)
            self._compare()

    def _look(self, pid: int) -> None:
        if pid in self._engines:
            return
        try:
            found = _SOCKET.search(Path(f"/proc/{pid}/cmdline").read_bytes())
            if found is None:
                return
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return
        env = dict(pair.partition(b"=")[::2] for pair in raw.split(b"\0"))
        stat = procfs.process(pid)
        if stat is None or stat.state in {"Z", "X"} or b"GPUSERVE_REPLICA" not in env:
            return
        parent = self._engines.get(stat.ppid)
        nonce = found[2].decode()
        if parent is not None and parent.nonce == nonce:
            return  # forked by it, and about to become something else
        self._engines[pid] = Engine(
            pid, stat.start_ticks, found[1].decode(), nonce, env[b"GPUSERVE_REPLICA"].decode(),
            int(env[b"GPUSERVE_GENERATION"]),
            env.get(b"CUDA_VISIBLE_DEVICES", b"").decode(), env.get(b"MARK", b"").decode(),
        )  # fmt: skip

    def _compare(self) -> None:
        first: dict[tuple[str, str, str], Engine] = {}
        for each in [each for each in self._engines.values() if each.lives()]:
            for what, value in (("replica", each.replica), ("GPU", each.gpu)):
                other = first.setdefault((each.run, what, value), each)
                # Looked at one after the other: only what lives after both were seen was there together.
                if other is not each and other.lives() and each.lives():
                    said = f"two engines of one {what} at once: {other} and {each}"
                    self._wrong.setdefault(each.run, []).append(f"{time.strftime('%H:%M:%S')} {said}")
