"""A fleet for the fault table, on each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.stage import SimStage, Stage


@pytest.fixture(scope="session", params=["sim"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Two replicas that can be made to misbehave."""
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    made = SimStage()
    try:
        made.up({"tiny": made.flavour.profile}, wait_s=made.flavour.start_s)
        yield made
    finally:
        made.close()
