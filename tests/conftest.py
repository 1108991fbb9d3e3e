"""What all tests share: whole daemons in folders of their own, the fault table's marker and report (see tests/faults/table.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Test files share modules; under --import-mode=importlib the repository is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.box import Box
from tests.e2e.stage import VllmStage
from tests.e2e.texts import VLLM_PYTHON
from tests.faults.table import Measured

ENGINES = [
    "sim",
    *([pytest.param("vllm", marks=[pytest.mark.real_vllm, pytest.mark.timeout(900)])] if VLLM_PYTHON else []),
]
"""For fixtures that exist on both engines. Real vLLM joins where GPUSERVE_TEST_VLLM names the interpreter of its environment."""

# The same examples every time: a run that fails fails again. GPUSERVE_TEST_RANDOM=1 looks for others.
# How long a draw or an example takes says more of what else the machine does than of the test: no deadline of 200 ms.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("unhurried"), derandomize=True, database=None)
settings.load_profile("unhurried" if os.environ.get("GPUSERVE_TEST_RANDOM") else "repeatable")

_MEASURED = pytest.StashKey[Measured]()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """What a test of the fault table fills in."""
    node: pytest.Item = request.node
    return node.stash.setdefault(_MEASURED, Measured())


@pytest.fixture
def box() -> Iterator[Box]:
    """A box of the test's own; `up` is up to the test."""
    made = Box()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def vllm() -> Iterator[VllmStage]:
    """The fleet of real vLLM servers: one for all tests, for it takes a minute to start."""
    made = VllmStage()
    try:
        made.up({"tiny": made.flavour.profile}, wait_s=2 * made.flavour.start_s)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared_box() -> Iterator[Box]:
    """A box that a module's tests share."""
    made = Box()
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add this test's line to the report of the fault table."""
    report = yield
    path = os.environ.get("GPUSERVE_FAULTS_REPORT")
    rows = [mark.args[0] for mark in item.iter_markers("fault")]
    if path and rows and (report.when == "call" or report.outcome != "passed"):
        seen = dataclasses.asdict(item.stash.get(_MEASURED, Measured()))
        engine = "vllm" if item.get_closest_marker("real_vllm") else "sim"
        said = {
            "test": item.nodeid,
            "rows": rows,
            "engine": engine,
            "outcome": report.outcome,
            "measured": seen,
        }
        with Path(path).open("a", encoding="utf-8") as file:  # one write each: workers share the file
            file.write(json.dumps(said) + "\n")
    return report
