"""Real replicas on four GPUs that exist on paper, whose driver says what a test wants."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from tests.e2e.box import Box, Json, until
from tests.e2e.texts import RESTART, sim

GIB = 1024**3
NAMES = ("tiny-0", "tiny-1", "tiny-2")
"""One GPU is free."""


class Bench(Box):
    """Four GPUs on paper, whose driver says what the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self._file = self.top / "inventory.json"
        self.gpus: list[dict[str, Any]] = [
            {"index": n, "uuid": f"SIM-{n}", "name": "H100", "memory_total_bytes": 80 * GIB, "ecc_uncorrected": 0, "xids": []}
            for n in range(4)
        ]  # fmt: skip
        self.say(0)
        config = self.top / "gpuserved.toml"
        config.write_text(f'[gpus]\nprovider = "{self._file}"\nmemory_back_s = 1.5\n', "utf-8")
        tables: dict[str, dict[str, object]] = {"restart": dict(RESTART), "limits": {"term_grace_s": 1}}
        profile = sim("tiny", replicas=3, flags={"load_s": 0.2}, tables=tables, gpus="all")
        self.ok(
            "up", self.write("tiny", profile), "--listen", f"127.0.0.1:{self.port}", "--config", str(config),
            "--wait", "60",
        )  # fmt: skip

    def say(self, index: int, **figures: Any) -> float:
        """The driver's word on one GPU from now on; the moment it was said."""
        self.gpus[index] |= figures
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"gpus": self.gpus}), "utf-8")
        os.replace(fresh, self._file)
        return time.monotonic()

    def xid(self, index: int, number: int) -> float:
        """One more Xid event."""
        return self.say(index, xids=[*self.gpus[index]["xids"], number])

    def where(self, replica: str) -> int:
        """The GPU that a replica has."""
        (index,) = self.replica(replica)["gpus"]
        return int(index)

    def free(self) -> int:
        """The GPU that nobody has."""
        return (set(range(4)) - {self.where(name) for name in NAMES}).pop()

    def gpu(self, index: int) -> Json:
        """One row of the snapshot."""
        rows: dict[str, Json] = {gpu["uuid"]: gpu for gpu in self.look()["gpus"]}
        return rows[f"SIM-{index}"]

    def wait_gpu(self, index: int, state: str) -> Json:
        """Wait until `status` shows the GPU so."""
        return until(lambda: (g := self.gpu(index))["state"] == state and g, f"GPU {index} {state}", 60) or {}

    def well(self) -> dict[str, Json]:
        """All three READY on GPUs that are OK; their rows."""
        for name in NAMES:
            self.wait_state(name, "READY", 60)
        assert [gpu["state"] for gpu in self.look()["gpus"]] == ["OK"] * 4
        return {row["id"]: row for row in self.look()["replicas"]}

    def same_but(self, before: dict[str, Json], *changed: str) -> None:
        """Nothing has happened to the others."""
        for name in set(NAMES) - set(changed):
            now = self.replica(name)
            assert (now["pid"], now["state"]) == (before[name]["pid"], "READY"), name

    def told(self) -> str:
        """What the events have said."""
        log = self.roots.log / "daemon.log"
        return log.read_text("utf-8", errors="replace")
