"""Slow is not hung: a saturated engine and one in a long silent prefill stay; a stopped one goes, within the times promised.

GPUSERVE_TEST_SLOW=1 takes ten minutes of overload and the deadlines that profiles have by default (30 s and 120 s).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass

import pytest
import requests
from tests.e2e.box import Box, kill, until
from tests.e2e.clients import PlainLoad
from tests.e2e.texts import sim
from tests.faults.table import Measured


@dataclass(frozen=True)
class Times:
    """How long each part lasts. Deadlines: see `Health` of a profile."""

    overload_s: float
    prefill_s: float
    rotation_s: float
    kill_s: float


TIMES = Times(600, 60, 30, 120) if os.environ.get("GPUSERVE_TEST_SLOW") else Times(8, 3, 2, 8)
LONG_PROMPT_TOKENS = 6000
GRACE_S = 2.0 if os.environ.get("GPUSERVE_TEST_SLOW") else 20.0
"""A scrape, a verdict and the kill come on top, once each; short deadlines are tested on hosts that are busy with other tests."""
CLIENTS = 24


def profile() -> str:
    """Two replicas with four places each: with so many clients most requests wait, always."""
    flags: dict[str, str | int | float | bool] = {
        "load_s": 0.3, "step_ms": 30, "max_num_seqs": 4, "max_num_batched_tokens": 8192,
        "prefill_tok_s": LONG_PROMPT_TOKENS / TIMES.prefill_s,
    }  # fmt: skip
    health = {
        "interval_s": 1.0, "hang_rotation_s": TIMES.rotation_s, "hang_timeout_s": TIMES.kill_s,
        "timeout_s": 10.0,
    }  # fmt: skip
    return sim("tiny", flags=flags, tables={"health": health, "restart": {"backoff_s": 0.2}})


def prefill(endpoint: str, answers: list[int]) -> None:
    """One prompt whose only step is longer than the rotation deadline allows a silence to be."""
    text = "word " * LONG_PROMPT_TOKENS
    body = {"model": "tiny", "prompt": text, "max_tokens": 1}
    answers.append(requests.post(f"{endpoint}/v1/completions", json=body, timeout=600).status_code)


@pytest.mark.alone
@pytest.mark.fault(5)
@pytest.mark.timeout(1800)
def test_slow_is_not_hung_and_hung_is_found(box: Box, measured: Measured) -> None:
    box.up({"tiny": profile()})
    before = {row["id"]: row["pid"] for row in box.look()["replicas"]}
    answers: list[int] = []
    with PlainLoad(box.endpoint, "tiny", CLIENTS, timeout_s=600) as load:
        end = time.monotonic() + TIMES.overload_s
        slow = threading.Thread(target=prefill, args=(box.endpoint, answers))
        slow.start()
        until(lambda: time.monotonic() > end, "the overload lasts", TIMES.overload_s + 60, every_s=1.0)
        slow.join(300)
        assert answers == [200]
        rows = box.look()["replicas"]
        assert {row["id"]: row["pid"] for row in rows} == before, "nobody was killed"
        assert [row["restarts"] for row in rows] == [0, 0]
        load.reach(4, 120)
        victim = box.wait_state("tiny-0", "READY", 60, rotation="in")
        at = kill(box.engine_core(victim).pid, signal.SIGSTOP)
        until(lambda: box.rotation("tiny-0") != "in", "out of rotation", TIMES.rotation_s + 60)
        measured.detect_s = time.monotonic() - at
        until(lambda: box.replica("tiny-0")["pid"] != before["tiny-0"], "killed", TIMES.kill_s + 60)
        killed_s = time.monotonic() - at
        box.wait_restarted(victim, 60)
        measured.recover_s = time.monotonic() - at
    measured.failed, measured.answered = len(load.failures), load.answered
    assert box.replica("tiny-1")["pid"] == before["tiny-1"]
    assert measured.detect_s <= TIMES.rotation_s + GRACE_S
    assert killed_s <= TIMES.kill_s + GRACE_S
