"""An operator's verb on several replicas, of which one leaves the fleet meanwhile: it is answered, and so is the next one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.replica.stand_in import PATIENCE_S, ScriptEngine, StandIn, assignment

from gpuserved.api.errors import Conflict
from gpuserved.api.types import ReplicasRequest
from gpuserved.fleet.reconcile import Reconciler
from gpuserved.fleet.state import FleetState
from gpuserved.host.deadline import within
from gpuserved.host.tasks import Tasks
from gpuserved.replica.controller import ReplicaController, log


@pytest.fixture
def top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gs-asking-") as made:
        yield Path(made)


class Leaving(StandIn):
    """Once the first replica has been told to stop, the second has done so, and leaves."""

    def __init__(self, top: Path) -> None:
        super().__init__(top, ScriptEngine(top))
        self.state = FleetState()
        self.tasks = Tasks(log)

    def changed(self, replica: str, previous_state: str) -> None:
        super().changed(replica, previous_state)
        if replica == "a-0" and "a-1" in self.state.replicas:
            gone = self.state.replicas["a-1"]
            self.state.discard("a-1")
            self.tasks.start(gone.detach(), "the end of a-1")


async def test_a_replica_that_leaves_in_the_middle_is_refused_and_holds_nobody_up(top: Path) -> None:
    services = Leaving(top)
    for replica in ("a-0", "a-1"):
        controller = ReplicaController(assignment(replica), services)
        services.state.add(controller)
        controller.begin()
    first = services.state.replicas["a-0"]
    saves: list[int] = []

    async def save() -> None:
        saves.append(services.state.generation)

    unused: Any = None
    reconciler = Reconciler(
        services.state, unused, unused, unused, unused, unused, unused, unused, unused, save
    )
    both = asyncio.ensure_future(reconciler.act("stop", ReplicasRequest(replicas=["a-0", "a-1"])))
    done = await within(both, PATIENCE_S)
    assert done.replicas == {"a-0": "STOPPED"}
    assert done.refused == {"a-1": "it has left the fleet"}
    again = await within(reconciler.act("stop", ReplicasRequest(replicas=["a-0"])), PATIENCE_S)
    assert (again.replicas, saves) == ({"a-0": "STOPPED"}, [1, 2])
    await first.detach()
    with pytest.raises(Conflict, match="a-0: it has left the fleet"):
        await within(reconciler.act("stop", ReplicasRequest(replicas=["a-0"])), PATIENCE_S)
    await services.tasks.close()
