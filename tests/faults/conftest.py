"""A fleet for the fault table, on each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conftest import ENGINES
from tests.e2e.stage import SimStage, Stage


@pytest.fixture(scope="session")
def sim_stage() -> Iterator[SimStage]:
    """Two look-alikes that can be made to misbehave."""
    made = SimStage()
    try:
        made.up({"tiny": made.flavour.profile}, wait_s=made.flavour.start_s)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session", params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Stage:
    """The same on each engine."""
    found: Stage = request.getfixturevalue("vllm" if request.param == "vllm" else "sim_stage")
    return found
