"""The fleet that `make soak` strikes: two profiles that serve one model, one on simulated GPUs, one on GPUs that are leased."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.box import GPUSERVED, REPOSITORY, Box, until
from tests.e2e.texts import HEALTH, toml
from tests.failpoints.world import write_inventory

from gpuserved.host.gpulock import GpuLocks

MODEL = "soak"
SIMULATED, LEASED = "sim", "paper"
REPLICAS = {SIMULATED: 3, LEASED: 2}
GPUS = 2
START_S = 120.0
"""Until something is up again on a machine that is busy with the load, too."""
_RESTART = {"stable_s": 1, "backoff_s": 0.2, "backoff_max_s": 2, "budget": 1000}
_LIMITS = {"drain_s": 20, "rolling_drain_s": 20, "term_grace_s": 5}


class Stage:
    """A box, its supervisor as our child, and what is asked of it."""

    def __init__(self, step_ms: float) -> None:
        self.box = Box()
        self._step_ms = step_ms
        self.locks = self.box.top / "locks"
        self.locks.mkdir()
        self.box.env["GPUSERVE_LOCK_DIR"] = str(self.locks)
        self.uuids = write_inventory(self.box.root / "gpus.json", GPUS)
        self.config = self.box.root / "gpuserved.toml"
        self.config.write_text(
            f'[gpus]\nprovider = "{self.box.root}/gpus.json"\n[router]\nrouters = 2\n[supervisor]\norphan_ttl_s = 600\n'
        )
        self._daemon: subprocess.Popen[bytes] | None = None

    # --- the supervisor

    def start_supervisor(self) -> None:
        """Start it, and wait until it answers."""
        with (self.box.top / "daemon.out").open("ab") as out:
            self._daemon = subprocess.Popen(
                [*GPUSERVED, "--listen", f"127.0.0.1:{self.box.port}"], env=self.box.env, cwd="/",
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        until(self._answers, "the supervisor answers", START_S)

    def _answers(self) -> bool:
        try:
            self.box.look()
        except OSError:
            assert self._daemon is not None
            if self._daemon.poll() is not None:
                raise AssertionError(f"the supervisor ended by itself: {self._daemon.returncode}") from None
            return False
        return True

    def kill_supervisor(self) -> int:
        """kill -9; its pid."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(30)
        return self._daemon.pid

    # --- profiles and commands

    def text(self, name: str, mark: int) -> str:
        """A profile; another mark makes other processes necessary."""
        common: dict[str, Any] = {
            "model": "sim/tiny", "served_name": MODEL, "replicas": REPLICAS[name], "max_model_len": 4096,
        }  # fmt: skip
        tables: dict[str, Mapping[str, object]] = {
            "restart": _RESTART, "limits": _LIMITS, "health": HEALTH, "env": {"MARK": str(mark)},
        }  # fmt: skip
        flags = {"step-ms": self._step_ms, "load-s": 0.2, "prefill-tok-s": 50000, "kv-cache-tokens": 400000}
        if name == SIMULATED:
            tables["sim"] = {**flags, "gpus": REPLICAS[name], "shm_leak": True}
            return toml(tables, engine="sim", **common)
        argv = [sys.executable, "-m", "gpuserved.engines.sim", "serve", "{model}", "--uds", "{socket}"]
        argv += [
            "--served-model-name",
            "{served_name}",
            *(f"--{key}={value}" for key, value in flags.items()),
        ]
        tables["env"] = {"MARK": str(mark), "PYTHONPATH": str(REPOSITORY / "daemon")}
        return toml({"command": {"argv": argv}, **tables}, engine="command", gpus=list(range(GPUS)), **common)

    def changed(self, name: str, mark: int) -> str:
        """Write the profile anew; its path."""
        return self.box.write(name, self.text(name, mark))

    def up(self) -> None:
        """Everything serves."""
        self.start_supervisor()
        paths = [self.changed(name, 0) for name in REPLICAS]
        self.box.ok("apply", *paths)
        self.quiet()
        self.box.remember()

    def told(self, *command: str) -> bool:
        """Whether the daemon has done it; it may refuse what its state of the moment does not know."""
        return self.box.run(*command, timeout_s=120).returncode == 0

    def insists(self, *command: str) -> None:
        """Ask until it is done: what was begun has to be ended."""
        until(lambda: self.told(*command), f"{command} is done", START_S, every_s=0.5)

    # --- looks

    def look(self) -> dict[str, Any]:
        """The snapshot, as soon as a supervisor answers."""
        return until(self._snapshot, "a snapshot", START_S)

    def _snapshot(self) -> dict[str, Any] | None:
        try:
            return self.box.look()
        except OSError:
            return None

    def rows(self) -> list[dict[str, Any]]:
        """The replicas."""
        rows: list[dict[str, Any]] = self.look()["replicas"]
        return rows

    def quiet(self) -> None:
        """Wait until every replica serves and nothing is under way."""

        def calm() -> bool:
            seen = self.look()
            serving = [row for row in seen["replicas"] if row["state"] == "READY"]
            rolled = all(roll["outcome"] for roll in seen["rollouts"])
            return rolled and len(serving) == len(seen["replicas"]) == sum(REPLICAS.values())

        try:
            until(calm, "every replica serves", START_S, every_s=0.2)
        except AssertionError as late:
            said = [(row["id"], row["state"], row["reason"]) for row in self.rows()]
            raise AssertionError(f"{late}: {said}, {self.look()['rollouts']}") from None

    def core_of(self, pid: int) -> int | None:
        """The engine process of an API process."""
        try:
            children = psutil.Process(pid).children()
            cores = [child.pid for child in children if "EngineCore" in " ".join(child.cmdline())]
        except psutil.Error:
            return None
        return cores[0] if cores else None

    def own_processes(self) -> dict[str, list[int]]:
        """Supervisor, routers and shims, by role."""
        seen = self.look()
        routers = list(seen["router"]["pids"])
        shims = [row["shim_pid"] for row in seen["replicas"] if row["shim_pid"] is not None]
        for pid in routers:
            try:
                shims.append(psutil.Process(pid).ppid())
            except psutil.Error:
                continue
        return {"supervisor": [seen["supervisor"]["pid"]], "routers": routers, "shims": shims}

    def leases(self) -> dict[str, list[str]]:
        """Who has leased each GPU."""
        locks = GpuLocks(self.locks, "the soak")
        return {
            uuid: [held.holder.partition(" of ")[0] for held in locks.held_by_others(uuid)]
            for uuid in self.uuids
        }

    def run_folders(self) -> list[Path]:
        """Of replicas."""
        return sorted((self.box.roots.run / "r").glob("*"))

    def down(self) -> None:
        """Everything ends, and the supervisor with 0."""
        assert self._daemon is not None
        self.box.remember()
        self.box.ok("down", "--yes", timeout_s=180)
        code = self._daemon.wait(60)
        assert code == 0, code
        until(lambda: not self.box.alive(), "everything gone after `down`", 30)

    def close(self) -> None:
        """Whatever happened. Where the supervisor is dead and others live, another one stops them."""
        if self._daemon is not None:
            if self._daemon.poll() is not None and self.box.alive():
                self.start_supervisor()
            self.box.run("down", "--yes", "--no-drain", timeout_s=180)
            if self._daemon.poll() is None:
                self._daemon.kill()
            self._daemon.wait(30)
        self.box.close()

    def sleep_until(self, moment: float) -> None:
        """Until a monotonic moment."""
        time.sleep(max(0.0, moment - time.monotonic()))
