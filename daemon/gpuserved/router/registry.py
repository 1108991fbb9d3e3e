"""What is routed where: the routing table come alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from gpuserved.api.routing import ModelRoute, RoutingTable
from gpuserved.core.balance import Rotation
from gpuserved.router.counts import Counts
from gpuserved.router.model import Entry, Model
from gpuserved.router.peers import Peers
from gpuserved.router.replica import Replica

_Key = tuple[str, int, str]
"""Id, generation, address: another one of these is another replica."""


class Registry:
    """All models and replicas. `apply` replaces the table without touching what is in flight."""

    def __init__(
        self, counts: Counts | None, peers: Peers, on_failed: Callable[[Replica, str], None]
    ) -> None:
        """:param counts: shared with the other routers, where there are any."""
        self._table = RoutingTable()
        self._models: dict[str, Model] = {}
        self._replicas: dict[_Key, Replica] = {}
        self._started: dict[tuple[int, int], Replica] = {}
        self._counts = counts
        self._peers = peers
        self._on_failed = on_failed

    @property
    def table(self) -> RoutingTable:
        """The present one."""
        return self._table

    @property
    def models(self) -> Mapping[str, Model]:
        """By served name."""
        return MappingProxyType(self._models)

    def model(self, name: str) -> Model | None:
        """The model of a served name."""
        return self._models.get(name)

    def replicas(self) -> Iterator[Replica]:
        """Those of the present table."""
        return iter(self._replicas.values())

    def started(self, identity: int, generation: int) -> Replica | None:
        """One start of a replica, if it is in the present table."""
        return self._started.get((identity, generation))

    def apply(self, table: RoutingTable) -> None:
        """Make `table` the present one."""
        merged: dict[str, list[ModelRoute]] = {}
        for route in table.models:
            merged.setdefault(route.name, []).append(route)
        known: dict[_Key, Replica] = {}
        admitted: list[tuple[Replica, bool]] = []
        models: dict[str, Model] = {}
        for name, routes in merged.items():
            entries: list[Entry] = []
            for wanted in (r for route in routes for r in route.replicas):
                key = (wanted.id, wanted.generation, wanted.address)
                replica = known.get(key) or self._replicas.get(key)
                if replica is None:
                    replica = Replica(
                        wanted, counts=self._counts, peers=self._peers, on_change=self._changed,
                        on_failed=self._on_failed, is_last=self._is_last,
                    )  # fmt: skip
                known[key] = replica
                admitted.append((replica, wanted.admit))
                entries.append(Entry(replica, wanted.upstream_model, wanted.weight, wanted.slow_start_s))
            models[name] = self._models.get(name) or Model(name)
            models[name].apply(routes, entries)
        gone = [replica for key, replica in self._replicas.items() if key not in known]
        removed = [model for name, model in self._models.items() if name not in models]
        self._table, self._models, self._replicas = table, models, known
        self._started = {(r.identity, r.generation): r for r in known.values()}
        for replica, admit in admitted:
            replica.set_admit(admit)
        for replica in gone:
            replica.retire()
        for model in removed:
            model.remove()
        for model in models.values():
            model.pump()

    def _changed(self, replica: Replica) -> None:
        for model in self._models.values():
            if model.lists(replica):
                model.pump()

    def _is_last(self, replica: Replica) -> bool:
        """Is there a model this replica alone could serve now?"""
        usable = {Rotation.IN, Rotation.PROBATION}
        return any(
            model.lists(replica)
            and not any(r is not replica and r.rotation in usable for r in model.replicas)
            for model in self._models.values()
        )

    def close(self) -> None:
        """Let go of everything."""
        for replica in self._replicas.values():
            replica.retire()
