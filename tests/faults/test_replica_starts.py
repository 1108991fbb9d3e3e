"""Rows of the fault table that strike a replica while it starts. Others run meanwhile and are not touched."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from tests.e2e.box import kill, until
from tests.e2e.stage import Stage, VllmStage
from tests.e2e.texts import sim, vllm_profile
from tests.faults.table import Measured


@contextlib.contextmanager
def others_untouched(stage: Stage, *struck: str) -> Iterator[None]:
    """The replicas that nobody struck are the same processes, READY."""

    def rows() -> list[tuple[object, ...]]:
        found = [
            row for row in stage.look()["replicas"] if row["profile"] == "tiny" and row["id"] not in struck
        ]
        return [(row["id"], row["state"], row["pid"], row["restarts"]) for row in found]

    stage.both_ready()
    before = rows()
    yield
    assert rows() == before


@pytest.mark.fault(39)
def test_a_start_that_stalls_is_given_up_and_tried_again(stage: Stage, measured: Measured) -> None:
    """Every process of it stops while it loads: no log line, no CPU time. The next start is as good as any."""
    with others_untouched(stage, "tiny-1"):
        before = stage.replica("tiny-1")
        stage.next_load_lasts("tiny-1")
        restart = stage.popen("restart", "tiny-1")

        def loading() -> dict[str, object] | None:
            row = stage.replica("tiny-1")
            begun = row["generation"] > before["generation"] and row["pid"] is not None
            return row if begun and f"pid={row['pid']})" in stage.ok("logs", "tiny-1", "-n", "1000") else None

        row = until(loading, "the new start has said something", 90, every_s=0.2)
        shim, *tree = stage.tree(int(str(row["shim_pid"])))
        at = time.monotonic()
        for process in tree:
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, signal.SIGSTOP)
        until(lambda: stage.replica("tiny-1")["restarts"] > before["restarts"], "the start is given up", 60)
        measured.detect_s = time.monotonic() - at
        psutil.wait_procs([shim, *tree], timeout=30)
        measured.left = sum(process.is_running() for process in tree)
        after = stage.wait_state("tiny-1", "READY", stage.flavour.start_s)
        measured.recover_s = time.monotonic() - at
        restart.communicate(timeout=60)
    assert after["generation"] == before["generation"] + 2
    assert after["restarts"] == before["restarts"] + 1
    assert "progress" in after["reason"]
    assert measured.left == 0


@pytest.mark.fault(34)
def test_an_engine_that_refuses_its_settings_says_why_and_waits(stage: Stage) -> None:
    """What no check before the start can know. It will not heal by itself, so it is not tried again and again."""
    if isinstance(stage, VllmStage):
        text = vllm_profile(stage.model, "wrong", {"quantization": "no-such-method"}, replicas=1)
    else:
        text = sim("wrong", replicas=1, flags={"fail_load": "bad-flag"})
    with others_untouched(stage):
        done = stage.run("apply", stage.write("wrong", text), timeout_s=120)
        row = stage.wait_state("wrong-0", "FAILED", stage.flavour.start_s)
        stage.ok("apply", "--prune", stage.write("tiny", stage.flavour.profile), timeout_s=60)
        until(lambda: "wrong-0" not in {each["id"] for each in stage.look()["replicas"]}, "it is let go", 60)
    assert done.returncode in {0, 1, 5}, done
    assert row["restarts"] == 0
    assert "will not heal by itself" in row["reason"], row["reason"]
