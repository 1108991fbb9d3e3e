"""What is wanted, and the replicas there are: the fleet's state, and the only code that changes it.

Everybody else reads, and says what is to become of it through the methods here. A change of what an operator decides on counts
the generation up: who planned on an older one looks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gpuserved.api.errors import Conflict
from gpuserved.core.assignment import Assignment
from gpuserved.planning.arrange import Wanted
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.snapshot import ReplicaSnapshot


class FleetState:
    """The state of one fleet, on one event loop."""

    def __init__(self) -> None:
        self._generation = 0
        self._desired: dict[str, Wanted] = {}
        self._replicas: dict[str, ReplicaController] = {}
        self._removals: dict[str, Wanted] = {}
        self._after_shutdown: Mapping[str, Wanted] | None = None

    @property
    def generation(self) -> int:
        """Counts what is decided; mutations carry the one they were decided on."""
        return self._generation

    @property
    def desired(self) -> Mapping[str, Wanted]:
        """The applied profiles by name."""
        return MappingProxyType(self._desired)

    @property
    def replicas(self) -> Mapping[str, ReplicaController]:
        """Every replica that exists, by id, also those on their way out."""
        return MappingProxyType(self._replicas)

    @property
    def removals(self) -> Mapping[str, Wanted]:
        """Replicas that the desired profiles have no place for: they drain, stop and leave. With what was wanted while they had one."""
        return MappingProxyType(self._removals)

    @property
    def after_shutdown(self) -> Mapping[str, Wanted] | None:
        """While everything is being stopped: what the next daemon is to want, also where this one is killed half-way; None: it is not."""
        return self._after_shutdown

    def snapshots(self) -> dict[str, ReplicaSnapshot]:
        """Every replica as it is now."""
        return {name: controller.snapshot for name, controller in self._replicas.items()}

    def targets(self) -> dict[str, Assignment]:
        """What each replica runs, or is to run next."""
        return {name: c.next_assignment or c.assignment for name, c in self._replicas.items()}

    def expect(self, generation: int | None) -> None:
        """Refuse a mutation decided on an older state.

        :param generation: what it was decided on; None: it does not say.
        :raises Conflict: it is older.
        """
        if generation is not None and generation != self._generation:
            raise Conflict(
                f"the fleet has moved on: generation {self._generation}, and this was decided on {generation}",
                "look again with `gpuserve status`, then repeat",
            )

    def commit(self, desired: Mapping[str, Wanted] | None = None, *, expected: int | None = None) -> int:
        """Make a decision the present one.

        :param desired: all profiles from now on; None: they stay.
        :param expected: the generation it was planned on; None: on no particular one.
        :returns: the generation of the decision.
        :raises Conflict: the state is another by now, or everything is being stopped; nothing has changed.
        """
        self.expect(expected)
        if desired is not None and self._after_shutdown is not None:
            raise Conflict(
                "everything is being stopped", "apply it again once `gpuserve status` finds no daemon"
            )
        if desired is not None:
            self._desired = dict(desired)
        self._generation += 1
        return self._generation

    def restore(self, generation: int, desired: Mapping[str, Wanted]) -> None:
        """What the daemon before this one has saved. Before anything else."""
        assert not self._replicas, "only an empty fleet can be restored"
        self._generation, self._desired = generation, dict(desired)

    def add(self, controller: ReplicaController) -> None:
        """A replica exists from now on."""
        assert controller.id not in self._replicas, controller.id
        self._replicas[controller.id] = controller

    def begin_removal(self, replica: str, wanted: Wanted) -> None:
        """A replica has no place any more.

        :param wanted: what was wanted while it had one; where it is on its way out already, the first stays.
        """
        assert replica in self._replicas, replica
        self._removals.setdefault(replica, wanted)

    def end_removal(self, replica: str) -> None:
        """A replica has a place, whether or not it had lost it."""
        self._removals.pop(replica, None)

    def discard(self, replica: str) -> None:
        """A replica is gone."""
        del self._replicas[replica]
        self._removals.pop(replica, None)

    def shut_down(self, *, forget: bool) -> None:
        """Everything is to stop: nothing is wanted any more.

        :param forget: the next daemon is to start empty; else with what is wanted now.
        """
        wanted = {} if forget else dict(self._desired)
        self.commit({})
        self._after_shutdown = wanted
