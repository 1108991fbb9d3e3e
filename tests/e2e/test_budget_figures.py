"""Figures an operator feels, with generous guards: exact ones are measured by scripts/measure_footprint.py on a quiet machine."""

from __future__ import annotations

import time

import psutil
import pytest
from tests.e2e.box import REPOSITORY, Box

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def eight(shared_box: Box) -> Box:
    """The shipped profile: eight replicas on eight simulated GPUs."""
    profile = REPOSITORY / "profiles" / "sim-8gpu.toml"
    listen = f"127.0.0.1:{shared_box.port}"
    shared_box.ok("up", str(profile), "--listen", listen, "--wait", "90", timeout_s=120)
    return shared_box


def test_status_answers_at_once(eight: Box) -> None:
    times = [float("inf")]
    # Other tests can slow a few of them; not every one of twenty.
    while min(times) >= 0.5 and len(times) <= 20:
        begun = time.monotonic()
        eight.ok("status")
        times.append(time.monotonic() - begun)
    assert min(times) < 0.5, times


def test_eight_replicas_are_on_eight_gpus(eight: Box) -> None:
    status = eight.status()
    assert [gpu["uuid"] for gpu in status["gpus"]] == [f"SIM-{n}" for n in range(8)]
    assert sorted(row["gpus"][0] for row in status["replicas"]) == list(range(8))
    assert {row["state"] for row in status["replicas"]} == {"READY"}
    for gpu in status["gpus"]:
        assert gpu["memory_total_bytes"] >= 80 * 1000**3
        assert len({owner["replica"] for owner in gpu["owners"]}) == 1


def test_the_supervisor_is_small(eight: Box) -> None:
    supervisor = psutil.Process(eight.look()["supervisor"]["pid"])
    assert supervisor.memory_full_info().pss < 80 * MIB
