"""Rows of the fault table that strike a replica. The tests run in order on one fleet; each leaves two READY replicas behind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from tests.e2e.box import Json, kill, until
from tests.e2e.clients import QUESTION, PlainLoad
from tests.e2e.stage import SimStage, Stage
from tests.e2e.strikes import strike
from tests.e2e.texts import SERVED
from tests.faults.table import Measured

from gpuserved.api.client import ControlClient

POISON = "the prompt that kills"
NEIGHBOURS = 255


def ask(stage: Stage, **more: object) -> requests.Response:
    body = {"model": SERVED, "messages": QUESTION, "max_tokens": 4} | more
    return requests.post(f"{stage.endpoint}/v1/chat/completions", json=body, timeout=300)


def titled(stage: Stage, row: Json, title: str) -> psutil.Process:
    """The last process of a replica's tree with this title."""
    return [p for p in stage.tree(row["shim_pid"]) if title in " ".join(p.cmdline())][-1]


@pytest.mark.fault(3)
def test_a_tensor_parallel_worker_is_killed(stage: Stage, measured: Measured) -> None:
    """The look-alike has two of them; the real engine on a CPU has one, and takes its own time to notice: until then it answers as if
    nothing had happened, and nobody outside can know.
    """

    def blow(row: Json) -> float:
        return kill(titled(stage, row, "VLLM::Worker").pid)

    detect_s = 1.5 if stage.flavour.engine == "sim" else 10
    struck = strike(stage, "tiny-0", blow, measured, detect_s)
    struck.replaced(r"(?i)engine|worker")


@pytest.mark.fault(30)
def test_a_shim_is_killed(stage: Stage, measured: Measured) -> None:
    """The API process dies with its shim; what that leaves is swept by its nonce."""
    struck = strike(stage, "tiny-1", lambda row: kill(row["shim_pid"]), measured, detect_s=1.5)
    struck.replaced(r"(?i)shim")


@pytest.mark.fault(9)
def test_a_replica_that_never_answers(stage: Stage, measured: Measured) -> None:
    """/health is fine, the engine idle, and no request gets an answer: a one-token canary finds out."""
    stage.both_ready()
    stage.spoil("tiny-1", accept_never_answer=True)
    before = stage.replica("tiny-1")
    at = time.monotonic()
    with PlainLoad(stage.endpoint, SERVED, clients=4) as load:
        until(lambda: stage.rotation("tiny-1") != "in", "out of rotation", 60)
        measured.detect_s = time.monotonic() - at
        stage.wait_restarted(before, stage.flavour.start_s)
        measured.recover_s = time.monotonic() - at
        load.reach(20)
    measured.failed, measured.answered = len(load.failures), load.answered


@pytest.mark.fault(10)
@pytest.mark.parametrize("kind", ["not-http", "huge-header", "bad-chunk", "truncated-chunked", "short-body"])
def test_broken_http_from_a_replica(stage: Stage, kind: str) -> None:
    """No broken answer is passed on as a whole one."""
    stage.both_ready()
    stage.spoil("tiny-0", garbage_response=kind)
    for _ in range(6):
        try:
            response = ask(stage)
        except requests.RequestException:
            continue  # cut in the middle: the client knows
        if response.status_code == 200:
            assert response.json()["choices"][0]["message"]["content"]
        else:
            assert response.json()["error"]["message"]
    stage.mend()


@pytest.mark.fault(11)
@pytest.mark.parametrize("kind", ["malformed", "huge", "nan", "duplicate", "endless"])
def test_useless_metrics(stage: Stage, kind: str, measured: Measured) -> None:
    stage.both_ready()
    before = stage.replica("tiny-0")
    stage.spoil("tiny-0", bad_metrics=kind)
    pid = stage.replica("tiny-0")["pid"]
    with PlainLoad(stage.endpoint, SERVED) as load:
        load.reach(40)
        time.sleep(stage.flavour.hang_rotation_s + 2)  # what it counts cannot be read: that is no hang
        row = stage.replica("tiny-0")
    measured.failed = len(load.failures)
    assert (row["state"], row["pid"]) == ("READY", pid), row["reason"]
    assert row["running"] is None or row["running"] >= 0
    assert row["restarts"] == before["restarts"]
    stage.mend()


@pytest.mark.fault(40)
def test_every_replica_fails_and_recovery_needs_nobody(sim_stage: SimStage, measured: Measured) -> None:
    """Requests wait while nothing is ready; none is lost, and nobody is asked to do anything."""
    sim_stage.both_ready()
    rows = [sim_stage.replica(name) for name in ("tiny-0", "tiny-1")]
    with PlainLoad(sim_stage.endpoint, SERVED, clients=4) as load:
        load.reach(8)
        at = time.monotonic()
        for row in rows:
            kill(row["pid"])
        for row in rows:
            sim_stage.wait_restarted(row, sim_stage.flavour.start_s)
        measured.recover_s = time.monotonic() - at
        load.reach(20)
    measured.failed, measured.answered = len(load.failures), load.answered


def nobody_was_ready(stage: Stage, since: float) -> bool:
    """Was there a moment after that Unix time in which no replica was READY? By the events: it may be short."""
    states = dict.fromkeys(("tiny-0", "tiny-1"), "READY")
    for event in ControlClient(stage.roots.control_socket).recent_events().events:
        if event.replica is not None and event.at >= since:
            states[event.replica.id] = event.replica.state
            if "READY" not in states.values():
                return True
    return False


@pytest.mark.fault(40)
@pytest.mark.fault(43)
def test_a_poison_request_is_blocked_and_its_neighbours_are_answered(
    stage: Stage, measured: Measured
) -> None:
    """It is replayed, and takes both replicas along with everything that waits for an answer there; the third time it is alone. Meanwhile
    every replica is dead at once, and nobody is asked to do anything.
    """
    stage.both_ready()
    stage.poison(POISON)
    first = {row["id"]: row["restarts"] for row in stage.look()["replicas"]}
    poison = [{"role": "user", "content": POISON}]
    at, since = time.monotonic(), time.time()
    with ThreadPoolExecutor(NEIGHBOURS + 1) as pool:
        asked = [pool.submit(ask, stage) for _ in range(NEIGHBOURS)]
        asked_poison = pool.submit(ask, stage, messages=poison)
        answer = asked_poison.result()
        statuses = [each.result().status_code for each in asked]
    assert nobody_was_ready(stage, since), "every replica is dead at once"
    assert answer.status_code == 502, answer.text
    assert statuses == [200] * NEIGHBOURS
    stage.mend()
    measured.recover_s = time.monotonic() - at
    measured.failed, measured.answered = 0, NEIGHBOURS
    restarts = sum(stage.replica(name)["restarts"] - count for name, count in first.items())
    assert restarts in {
        2,
        3,
    }  # 2 where no neighbour waited beside it any more when it struck again: then it is known


@pytest.mark.fault(37)
def test_a_storm_of_commands_ends_as_the_last_one_says(sim_stage: SimStage) -> None:
    sim_stage.both_ready()
    verbs = ["stop", "start", "restart", "start", "stop", "restart"] * 8
    running = [sim_stage.popen(verb, "tiny-1") for verb in verbs]
    for process in running:
        process.communicate(timeout=120)
    sim_stage.run("stop", "tiny-1")
    sim_stage.wait_state("tiny-1", "STOPPED", 60)
    sim_stage.ok("start", "tiny-1")
    sim_stage.both_ready()
    assert len(sim_stage.tree(sim_stage.replica("tiny-1")["shim_pid"])) >= 3


@pytest.mark.fault(35)
def test_no_zombie_is_left(stage: Stage) -> None:
    """After all that this fleet has been through."""
    stage.both_ready()

    def zombies() -> list[int]:
        mine = [stage.look()["supervisor"]["pid"], *(row["shim_pid"] for row in stage.look()["replicas"])]
        return [
            process.pid
            for process in psutil.process_iter(["ppid", "status"])
            if process.info["ppid"] in mine and process.info["status"] == psutil.STATUS_ZOMBIE
        ]

    until(lambda: not zombies(), "no zombie below the supervisor or a shim", 60)
