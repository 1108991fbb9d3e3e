"""What strikes a fleet in `make soak`: the faults of the fault table that need nothing but a signal, and what operators do all day."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from tests.soak.stage import LEASED, SIMULATED, Stage

SETTLED_S = 6.0
"""A start is struck when its shim has looked at its shared memory; before that a killed engine may leave some (docs/reliability.md)."""
STORM = 200
"""Clients of one storm, as many as the router has file descriptors for several times over."""
AWAY_MAX_S = 3.0
"""How long the supervisor stays dead."""


class Blows:
    """Strikes one after the other. Each blow says what it struck, or None where nothing was there to strike."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._chance = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.routers_died: list[float] = []
        """When a router was killed (monotonic): its own requests are lost with it, and nobody else's."""
        self._kinds: dict[str, tuple[int, Callable[[], str | None]]] = {
            "kill -9 of an API process": (12, lambda: self._kill("api", signal.SIGKILL)),
            "kill -9 of an EngineCore": (12, lambda: self._kill("engine", signal.SIGKILL)),
            "kill -9 of a shim": (10, lambda: self._kill("shim", signal.SIGKILL)),
            "SIGSTOP of an API process": (8, lambda: self._kill("api", signal.SIGSTOP)),
            "SIGSTOP of an EngineCore": (8, lambda: self._kill("engine", signal.SIGSTOP)),
            "kill -9 of a router": (3, self._kill_router),
            "kill -9 of the supervisor": (5, self._kill_supervisor),
            "a storm of clients": (8, self._storm),
            "drain, then undrain": (8, self._drain),
            "restart of a replica": (8, self._restart),
            "scale down, then up": (6, self._scale),
            "rolling change": (6, self._change),
            "reload of a broken file": (6, self._reload_broken),
        }
        self._due = self._chance.sample(list(self._kinds), len(self._kinds))
        """Each kind once, in a random order, before they are drawn by weight: the short form, too, sees them all."""

    def strike(self) -> str:
        """One blow on something that is there."""
        weights = [weight for weight, _ in self._kinds.values()]
        for name in [*self._due, *self._chance.choices(list(self._kinds), weights, k=20)]:
            struck = self._kinds[name][1]()
            if struck is not None:
                self.count[name] += 1
                self._due = [each for each in self._due if each != name]
                return f"{name}: {struck}"
        return "nothing to strike"

    # --- replicas

    def _victim(self, *, leased: bool = True) -> dict[str, object] | None:
        """A replica that has served for a while, while another one of the model serves, too."""
        ready = [row for row in self._stage.rows() if row["state"] == "READY" and row["rotation"] == "in"]
        old = [
            row
            for row in ready
            if time.time() - row["started_at"] > SETTLED_S and (leased or row["profile"] == SIMULATED)
        ]
        return self._chance.choice(old) if len(ready) > 2 and old else None

    def _kill(self, what: str, number: signal.Signals) -> str | None:
        # A stopped engine is found by its step counter, which a plain command does not tell.
        row = self._victim(leased=not (what == "engine" and number == signal.SIGSTOP))
        if row is None:
            return None
        pid = row["shim_pid"] if what == "shim" else row["pid"]
        if what == "engine":
            pid = self._stage.core_of(int(str(row["pid"])))
        if pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(str(pid)), number)
            return f"{row['id']}, PID {pid}"
        return None

    def _drain(self) -> str | None:
        row = self._victim()
        if row is None or not self._stage.told("drain", str(row["id"])):
            return None
        time.sleep(self._chance.random())
        self._stage.insists("undrain", str(row["id"]))
        return str(row["id"])

    def _restart(self) -> str | None:
        row = self._victim()
        return str(row["id"]) if row is not None and self._stage.told("restart", str(row["id"])) else None

    def _scale(self) -> str | None:
        if not self._stage.told("scale", LEASED, "1"):
            return None
        time.sleep(self._chance.random())
        self._stage.insists("scale", LEASED, "2")
        return LEASED

    def _change(self) -> str | None:
        name = self._chance.choice((SIMULATED, LEASED))
        path = self._stage.changed(name, self._chance.randrange(10**6))
        return name if self._stage.told("apply", path) else None

    # --- the rest

    def _kill_router(self) -> str | None:
        pids = self._stage.look()["router"]["pids"]
        if not pids:
            return None
        pid = self._chance.choice(pids)
        self.routers_died.append(time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"PID {pid}"

    def _kill_supervisor(self) -> str | None:
        pid = self._stage.kill_supervisor()
        time.sleep(self._chance.random() * AWAY_MAX_S)
        self._stage.start_supervisor()
        return f"PID {pid}"

    def _storm(self) -> str | None:
        """Half of them ask for a page and leave, half say nothing."""
        with contextlib.ExitStack() as stack:
            for n in range(STORM):
                link = stack.enter_context(socket.socket())
                link.settimeout(5)
                with contextlib.suppress(OSError):
                    link.connect(("127.0.0.1", self._stage.box.port))
                    if n % 2:
                        link.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return f"{STORM} clients"

    def _reload_broken(self) -> str | None:
        """Refused, and nothing changes."""
        path: Path = self._stage.config
        whole = path.read_text()
        path.write_text(
            self._chance.choice(("[router\n", "[router]\nlisten = 7\n", whole + "nonsense = 1\n"))
        )
        try:
            done = self._stage.box.run("reload")
        finally:
            path.write_text(whole)
        if done.returncode != 2:
            raise AssertionError(f"a broken file was not refused: rc {done.returncode} {done.stderr}")
        return "refused"


def zombies(parents: list[int]) -> list[int]:
    """Dead children that nobody has taken note of."""
    return [
        process.pid
        for process in psutil.process_iter(["ppid", "status"])
        if process.info["ppid"] in parents and process.info["status"] == psutil.STATUS_ZOMBIE
    ]
