"""Folders whose socket paths fit, and controllers that are gone after their test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.replica.stand_in import StandIn, assignment

from gpuserved.core.assignment import Assignment
from gpuserved.core.state import Replica
from gpuserved.host.sweep import end_start
from gpuserved.replica import start_files
from gpuserved.replica.controller import ReplicaController

Make = Callable[..., ReplicaController]


@pytest.fixture
def top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gs-replica-") as made:  # short: socket paths must fit
        yield Path(made)


@pytest.fixture
async def control() -> AsyncIterator[Make]:
    """Makes controllers that have begun; what they run is ended with the test."""
    made: list[tuple[ReplicaController, StandIn]] = []

    def make(services: StandIn, of: Assignment | None = None, r: Replica | None = None) -> ReplicaController:
        controller = ReplicaController(of or assignment(), services, r)
        made.append((controller, services))
        controller.begin()
        return controller

    yield make
    for controller, services in made:
        await controller.detach()
        found, unexplained = start_files.scan(services.roots.run)
        for folder in (*(each.folder for each in found), *unexplained):
            await end_start(folder, folder.name)
