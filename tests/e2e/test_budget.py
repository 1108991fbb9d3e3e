"""Crash loops end, say what began them, and never give up the last replica of a model."""

from __future__ import annotations

import json
import os

import pytest
from tests.e2e.box import Box, kill, until
from tests.e2e.texts import sim


def test_a_crash_loop_ends_in_failed_and_the_last_replica_is_retried(box: Box) -> None:
    restart = {"budget": 3, "backoff_s": 0.1, "retry_s": 2}
    flags: dict[str, str | int | float | bool] = {
        "load_s": 0.5,
        "crash_after_load": True,
        "crash_exit_code": 7,
    }
    path = box.write("loop", sim("loop", replicas=2, flags=flags, tables={"restart": restart}))
    failed = box.run("up", path, "--listen", f"127.0.0.1:{box.port}", "--wait", "60", timeout_s=90)
    assert failed.returncode in {1, 5}, (failed.stdout, failed.stderr)

    def settled() -> list[dict[str, object]] | None:
        rows = box.look()["replicas"]
        return rows if any(row["state"] == "FAILED" and row["restarts"] == 2 for row in rows) else None

    rows = until(settled, "one replica spent its budget", 60)
    lost = next(row for row in rows if row["state"] == "FAILED" and row["restarts"] == 2)
    assert "3 crashes in a row" in str(lost["reason"])
    assert "7" in str(lost["reason"])
    # The other one is the last of its model now: it goes on past its budget.
    last = "loop-1" if lost["id"] == "loop-0" else "loop-0"
    until(lambda: box.replica(last)["restarts"] > 3, "the last replica is retried", 60)
    assert box.replica(str(lost["id"]))["restarts"] == 2


def test_the_first_cause_is_the_one_reported(box: Box) -> None:
    """A kill starts the row; what follows is its echo."""
    faults = box.top / "faults.json"
    restart = {"budget": 3, "backoff_s": 0.1, "retry_s": 300}
    text = sim(
        "solo",
        replicas=1,
        flags={"load_s": 0.3, "faults_file": str(faults)},
        tables={"restart": restart},
    )
    faults.write_text("{}", "utf-8")
    box.up({"solo": text})
    faults.write_text(json.dumps({"*": {"crash_after_load": True, "crash_exit_code": 7}}), "utf-8")
    kill(box.replica("solo-0")["pid"])
    row = box.wait_state("solo-0", "FAILED", 60)
    assert "3 crashes in a row, first:" in row["reason"]
    assert "SIGKILL" in row["reason"]
    # An operator who has mended the cause starts it with a clean slate.
    faults.write_text("{}", "utf-8")
    box.ok("start", "solo-0")
    assert box.wait_state("solo-0", "READY", 60)["pid"] is not None


def test_a_cause_that_cannot_heal_waits_for_the_operator(box: Box) -> None:
    restart = {"budget": 5, "backoff_s": 0.1, "retry_s": 1}
    text = sim("never", replicas=1, flags={"fail_load": "bad-flag"}, tables={"restart": restart})
    path = box.write("never", text)
    assert box.run("up", path, "--listen", f"127.0.0.1:{box.port}", "--wait", "60").returncode in {1, 5}
    row = box.wait_state("never-0", "FAILED", 60)
    assert row["restarts"] == 0
    assert "will not heal by itself" in row["reason"]


_LONG = os.environ.get("GPUSERVE_TEST_SLOW")


@pytest.mark.alone
@pytest.mark.fault(39)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("load_s", [100.0] if _LONG else [2.0])
def test_a_slow_loader_that_crashes_trips_the_budget(box: Box, load_s: float) -> None:
    """GPUSERVE_TEST_SLOW=1 takes the 100 s that a real model loads; the row of crashes is the same one."""
    restart = {"budget": 2, "backoff_s": 0.1, "retry_s": 3600}
    flags: dict[str, str | int | float | bool] = {"load_s": load_s, "crash_after_s": 0.2, "step_ms": 20}
    path = box.write("slow", sim("slow", replicas=1, flags=flags, tables={"restart": restart}))
    box.run("up", path, "--listen", f"127.0.0.1:{box.port}", "--wait", "1")
    row = box.wait_state("slow-0", "FAILED", 3 * load_s + 60)
    assert row["restarts"] == 1
    assert "2 crashes in a row" in row["reason"]
