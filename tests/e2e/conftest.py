"""Boxes for the tests: a fleet on each engine, and boxes for a test of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import ENGINES
from tests.e2e.box import Box
from tests.e2e.texts import Fleet, sim_flavour


@pytest.fixture(scope="session", params=ENGINES)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Replicas `tiny-0` and `tiny-1`."""
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    box = Fleet()
    try:
        box.flavour = sim_flavour()
        box.up({"tiny": box.flavour.profile}, wait_s=box.flavour.start_s)
        yield box
    finally:
        box.close()


@pytest.fixture
def boxes() -> Iterator[Callable[[Path | None], Box]]:
    """Makes boxes, for a test that needs a special root or more than one."""
    made: list[Box] = []

    def make(root: Path | None = None) -> Box:
        made.append(Box(root))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()
