"""Boxes for the tests. Real vLLM joins where GPUSERVE_TEST_VLLM names the interpreter of its environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.box import Box
from tests.e2e.texts import VLLM_PYTHON, Fleet, sim_flavour, vllm_flavour

_ENGINES = [
    "sim",
    *([pytest.param("vllm", marks=[pytest.mark.real_vllm, pytest.mark.timeout(400)])] if VLLM_PYTHON else []),
]


@pytest.fixture(scope="session", params=_ENGINES)
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    box = Fleet()
    try:
        engine = request.param
        made = sim_flavour() if engine == "sim" else vllm_flavour(tmp_path_factory.mktemp("model"))
        box.flavour = made
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
