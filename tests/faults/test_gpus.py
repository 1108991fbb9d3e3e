"""Rows of the fault table that strike a GPU. The daemon, the replicas and the commands are real; what the driver says of the four
GPUs is written into the inventory file that the daemon reads. Three replicas, so that one GPU is free. Every test ends with all GPUs
released and three READY replicas.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.e2e.box import kill, until
from tests.e2e.clients import PlainLoad
from tests.e2e.texts import sim
from tests.faults.gpubench import GIB, Bench
from tests.faults.table import Measured


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        made.close()


def test_an_operator_sets_a_gpu_aside_and_releases_it(bench: Bench, measured: Measured) -> None:
    """Its replica is drained and moves to the free GPU; no request fails, nobody else is touched."""
    before = bench.well()
    index, spare = bench.where("tiny-1"), bench.free()
    with PlainLoad(bench.endpoint, "tiny") as load:
        load.reach(10)
        said = json.loads(bench.ok("quarantine", str(index), "--reason", "fan is loud", "--json"))
        assert said["replicas"] == {"tiny-1": f"moves to GPU {spare}"}
        assert [(gpu["state"], gpu["reason"]) for gpu in said["gpus"]] == [("QUARANTINED", "fan is loud")]
        bench.wait_restarted(before["tiny-1"], 60)
        load.reach(10)
    assert load.failures == []
    measured.failed, measured.answered = len(load.failures), load.answered
    assert bench.where("tiny-1") == spare
    bench.same_but(before, "tiny-1")
    assert "fan is loud" in bench.ok("status")
    again = bench.run("quarantine", str(index))
    assert (again.returncode, again.stderr) == (
        0,
        f"GPU {index} was quarantined already; it is for: fan is loud\n",
    )
    released = json.loads(bench.ok("release", f"SIM-{index}", "--json"))
    assert released["replicas"] == {}, "who has moved stays"
    assert bench.run("quarantine", "9").returncode == 2
    bench.well()


def test_with_no_gpu_free_its_replica_waits_and_a_new_daemon_knows(bench: Bench) -> None:
    before = bench.well()
    spare, index = bench.free(), bench.where("tiny-2")
    bench.ok("quarantine", str(spare))
    bench.ok("quarantine", f"SIM-{index}", "--reason", "ticket 812")
    row = bench.wait_state("tiny-2", "FAILED", 60)
    assert row["reason"] == f"could not be started: GPU {index} is quarantined: ticket 812"
    plan = bench.run("plan", bench.write("other", sim("other", replicas=2, gpus="all")))
    assert plan.returncode == 4
    assert "quarantined: ticket 812" in plan.stdout
    kill(bench.look()["supervisor"]["pid"])
    assert f"GPU {index} (SIM-{index}) is quarantined: ticket 812" in bench.run("doctor").stdout
    bench.ok(
        "up", bench.write("tiny", (bench.profiles / "tiny.toml").read_text()), "--listen", f"127.0.0.1:{bench.port}",
        "--config", str(bench.top / "gpuserved.toml"), "--wait", "0",
    )  # fmt: skip
    assert [bench.gpu(n)["state"] for n in (spare, index)] == ["QUARANTINED", "QUARANTINED"]
    bench.wait_state("tiny-2", "FAILED", 60)
    bench.same_but(before, "tiny-2")
    said = json.loads(bench.ok("release", str(index), str(spare), "--json"))
    assert said["replicas"] == {"tiny-2": f"is started on GPU {index}"}
    bench.well()
    bench.same_but(before, "tiny-2")


@pytest.mark.fault(16)
def test_an_application_error_restarts_the_replica_whose_context_is_gone(
    bench: Bench, measured: Measured
) -> None:
    """The kernel never comes back from it: a stopped engine is what that looks like."""
    before = bench.well()
    index = bench.where("tiny-0")
    with PlainLoad(bench.endpoint, "tiny") as load:
        load.reach(10)
        bench.engine_core(before["tiny-0"]).suspend()
        at = bench.xid(index, 31)
        until(lambda: bench.rotation("tiny-0") != "in", "out of rotation", 60, every_s=0.02)
        measured.detect_s = time.monotonic() - at
        after = bench.wait_restarted(before["tiny-0"], 60)
        measured.recover_s = time.monotonic() - at
        load.reach(10)
    measured.failed, measured.told, measured.answered = len(load.failures), 0, load.answered
    assert load.failures == []
    assert after["gpus"] == [index]
    assert "Xid 31 (GPU memory page fault) on GPU" in after["reason"]
    assert bench.gpu(index)["state"] == "OK"
    bench.same_but(before, "tiny-0")


@pytest.mark.fault(16)
def test_an_application_error_of_somebody_else_touches_no_replica(bench: Bench) -> None:
    """As measured on a card: the process whose kernel went wrong was gone before any sample showed it."""
    before = bench.well()
    index = bench.where("tiny-0")
    bench.xid(index, 13)
    until(lambda: "the error was not tiny-0's" in bench.told(), "the replica is cleared", 60)
    bench.same_but(before)


@pytest.mark.fault(16)
def test_a_hardware_error_sets_the_gpu_aside_and_its_replica_moves(bench: Bench, measured: Measured) -> None:
    before = bench.well()
    index, spare = bench.where("tiny-0"), bench.free()
    with PlainLoad(bench.endpoint, "tiny") as load:
        load.reach(10)
        at = bench.xid(index, 95)
        gpu = bench.wait_gpu(index, "QUARANTINED")
        measured.detect_s = time.monotonic() - at
        bench.wait_restarted(before["tiny-0"], 60)
        measured.recover_s = time.monotonic() - at
        load.reach(10)
    measured.failed, measured.answered = len(load.failures), load.answered
    assert load.failures == []
    assert bench.where("tiny-0") == spare
    assert "Xid 95 (uncontained memory error)" in gpu["reason"]
    assert "reset the GPU" in gpu["reason"]
    bench.same_but(before, "tiny-0")
    bench.xid(index, 45)  # as the driver reports every kill
    bench.xid(index, 777)
    until(lambda: "Xid 777" in bench.told(), "an unknown one is told", 60)
    bench.same_but(before, "tiny-0")
    bench.ok("release", str(index))
    bench.well()


@pytest.mark.fault(16)
def test_ecc_errors_drain_the_gpu(bench: Bench) -> None:
    """The GPU still computes: requests that run there end well."""
    before = bench.well()
    index = bench.where("tiny-2")
    with PlainLoad(bench.endpoint, "tiny") as load:
        load.reach(10)
        bench.say(index, ecc_uncorrected=2)
        gpu = bench.wait_gpu(index, "QUARANTINED")
        bench.wait_restarted(before["tiny-2"], 60)
        load.reach(10)
    assert load.failures == []
    assert "uncorrectable ECC errors: 2 more" in gpu["reason"]
    bench.same_but(before, "tiny-2")
    bench.ok("release", str(index))
    time.sleep(2.5)  # two samples: the count that the release has accepted is no news
    bench.well()


@pytest.mark.fault(15)
def test_a_lost_gpu_is_left_at_once_and_not_released_while_it_is_lost(
    bench: Bench, measured: Measured
) -> None:
    before = bench.well()
    index = bench.where("tiny-1")
    at = bench.say(index, state="LOST", memory_used_bytes=None)
    gpu = bench.wait_gpu(index, "LOST")
    measured.detect_s = time.monotonic() - at
    bench.wait_restarted(before["tiny-1"], 60)
    measured.recover_s = time.monotonic() - at
    assert "the GPU is lost" in bench.gpu(index)["reason"]
    assert gpu["memory_used_bytes"] is None
    bench.same_but(before, "tiny-1")
    refused = bench.run("release", str(index))
    assert refused.returncode == 4
    assert "LOST" in refused.stderr
    bench.say(index, state="OK")
    bench.wait_gpu(index, "QUARANTINED")
    bench.ok("release", str(index))
    bench.well()


@pytest.mark.fault(15)
def test_a_gpu_that_does_not_come_back_with_the_host(bench: Bench, measured: Measured) -> None:
    """The daemon starts all the same, and its replica moves; the GPU is shown as lost, and used again once it is back and released."""
    before = bench.well()
    index, spare = bench.where("tiny-1"), bench.free()
    kill(bench.look()["supervisor"]["pid"])
    for process in bench.tree(before["tiny-1"]["shim_pid"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    gone = bench.gpus.pop(index)
    bench.say(0)
    at = time.monotonic()
    bench.ok(
        "up", bench.write("tiny", (bench.profiles / "tiny.toml").read_text()), "--listen", f"127.0.0.1:{bench.port}",
        "--config", str(bench.top / "gpuserved.toml"), "--wait", "60",
    )  # fmt: skip
    measured.recover_s = time.monotonic() - at
    assert bench.where("tiny-1") == spare
    bench.same_but(before, "tiny-1")
    lost = bench.gpu(index)
    assert lost["state"] == "LOST"
    assert "the driver does not show this GPU any more" in lost["reason"]
    bench.gpus.insert(index, gone)
    bench.say(index)
    bench.wait_gpu(index, "QUARANTINED")
    bench.ok("release", f"SIM-{index}")
    bench.well()


@pytest.mark.fault(15)
def test_memory_that_does_not_come_back_keeps_the_gpu_from_everybody(
    bench: Bench, measured: Measured
) -> None:
    """The driver still lists the dead replica's process: nothing starts there until it is gone, and then the GPU is back by itself."""
    before = bench.well()
    index, row = bench.where("tiny-0"), before["tiny-0"]
    core = bench.engine_core(row).pid
    bench.say(index, processes=[{"pid": core, "memory_bytes": 70 * GIB}])
    until(lambda: bool(bench.gpu(index)["owners"]), "the process is seen there", 60)
    at = kill(row["pid"])
    gpu = bench.wait_gpu(index, "QUARANTINED")
    assert f"PID {core} of an earlier start still holds its memory" in gpu["reason"]
    after = bench.wait_restarted(row, 60)
    measured.recover_s = time.monotonic() - at
    assert after["gpus"] != [index], "it did not wait for what may never end"
    bench.same_but(before, "tiny-0")
    bench.say(index, processes=[])
    bench.wait_gpu(index, "OK")
    bench.well()


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup whose processes do not even die of SIGKILL: what a process that is stuck in a driver does, made to order."""
    path = Path(f"/sys/fs/cgroup/freezer/gpuserve-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(
            f"AN UNKILLABLE PROCESS IS NOT TESTED: no freezer of cgroup version 1 may be used: {error}"
        )
    yield path
    (path / "freezer.state").write_text("THAWED")
    until(lambda: not (path / "cgroup.procs").read_text(), "the freezer is empty", 60)
    path.rmdir()


@pytest.mark.fault(15)
def test_a_process_that_survives_sigkill_keeps_its_gpu_from_everybody(
    bench: Bench, freezer: Path, measured: Measured
) -> None:
    before = bench.well()
    index, row = bench.where("tiny-2"), before["tiny-2"]
    core = bench.engine_core(row).pid
    (freezer / "cgroup.procs").write_text(str(core))
    (freezer / "freezer.state").write_text("FROZEN")
    at = kill(row["pid"])
    gpu = bench.wait_gpu(index, "QUARANTINED")
    measured.detect_s = time.monotonic() - at
    assert f"PID {core} of tiny-2 does not end after SIGKILL" in gpu["reason"]
    assert bench.replica("tiny-2")["state"] == "STOPPING", (
        "one replica is one process: it is not started elsewhere beside it"
    )
    bench.same_but(before, "tiny-2")
    (freezer / "freezer.state").write_text("THAWED")
    bench.wait_gpu(index, "OK")
    bench.wait_restarted(row, 60)
    measured.recover_s = time.monotonic() - at
    bench.well()
