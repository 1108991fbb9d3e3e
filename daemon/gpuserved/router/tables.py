"""The routing table come alive: models, their replicas, and who waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpuserved.api.routing import ModelRoute, RoutingTable
from gpuserved.core.balance import Rotation
from gpuserved.core.fairqueue import FairQueue
from gpuserved.core.policy.base import Ask, Policy
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.make import make_policy
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.router.counts import Counts
from gpuserved.router.http import errors
from gpuserved.router.replica import Replica


@dataclass(eq=False)
class Entry:
    """A replica as one model lists it."""

    replica: Replica
    upstream_model: str | None
    weight: float = 1.0
    slow_start_s: float = 0.0


@dataclass(eq=False)
class Waiter:
    """A request in the queue."""

    future: asyncio.Future[Entry]
    avoid: frozenset[Replica]
    ask: Ask
    tenant: str


@dataclass(eq=False)
class Model:
    """One served name; profiles that share it are merged."""

    name: str
    policy: Policy = field(default_factory=LeastInflight)
    settings: tuple[str, float] = ("", 0.0)
    """What `policy` was made from."""
    session_header: bytes = b""
    queue_max: int = 512
    queue_timeout_s: float = 600.0
    entries: list[Entry] = field(default_factory=list)
    waiters: FairQueue[Waiter] = field(default_factory=FairQueue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """At hand, for the clock: before Python 3.12 asking which loop runs is a system call."""
    suspects: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one suspect of a second crash that may run."""
    removed: bool = False
    """No longer served: nobody will come who could serve those that wait."""

    def remove(self) -> None:
        """It is served no longer: those that wait are told now, and not when their time in the queue is over."""
        self.removed = True
        self.entries = []
        while (waiter := self.waiters.head()) is not None:
            self.waiters.pop()
            if not waiter.future.done():
                waiter.future.set_exception(errors.removed(self.name))

    def take_settings(self, routes: list[ModelRoute]) -> None:
        """Of profiles that share a name the first one says how to choose; a policy that stays keeps what it remembers."""
        first = routes[0]
        settings = (first.policy, first.load_factor)
        if settings != self.settings:
            self.settings = settings
            self.policy = make_policy(first.policy, load_factor=first.load_factor)
        self.session_header = first.session_header.encode()
        self.queue_max = max(r.queue for r in routes)
        self.queue_timeout_s = max(r.queue_timeout_s for r in routes)

    def usable(self) -> bool:
        """Could a request go somewhere now?"""
        return any(
            e.replica.rotation in {Rotation.IN, Rotation.PROBATION} or e.replica.doubtful
            for e in self.entries
        )


class Fleet:
    """All models and replicas. `apply` replaces the table without touching what is in flight."""

    def __init__(
        self,
        on_change: Callable[[Model], None],
        on_failed: Callable[[Replica, str], None],
        on_sent: Callable[[Replica, PrefixKey, float], None],
    ) -> None:
        self.table = RoutingTable()
        self.models: dict[str, Model] = {}
        self._replicas: dict[tuple[str, int, str], Replica] = {}
        self._on_change = on_change
        self._on_failed = on_failed
        self._on_sent = on_sent
        self._started: dict[tuple[int, int], Replica] = {}
        self.counts: Counts | None = None
        """Shared with the other routers, where there are any."""

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
        known: dict[tuple[str, int, str], Replica] = {}
        admitted: list[tuple[Replica, bool]] = []
        models: dict[str, Model] = {}
        for name, routes in merged.items():
            model = self.models.get(name) or Model(name)
            model.take_settings(routes)
            model.entries = []
            for wanted in (r for route in routes for r in route.replicas):
                key = (wanted.id, wanted.generation, wanted.address)
                replica = known.get(key) or self._replicas.get(key)
                if replica is None:
                    replica = Replica(
                        wanted,
                        on_change=self._changed,
                        on_failed=self._on_failed,
                        is_last=self._is_last,
                        on_sent=self._on_sent,
                    )
                    if self.counts is not None:
                        replica.cell = self.counts.cell(replica.identity)
                known[key] = replica
                admitted.append((replica, wanted.admit))
                model.entries.append(
                    Entry(replica, wanted.upstream_model, wanted.weight, wanted.slow_start_s)
                )
            models[name] = model
        gone = [replica for key, replica in self._replicas.items() if key not in known]
        removed = [model for name, model in self.models.items() if name not in models]
        self.table, self.models, self._replicas = table, models, known
        self._started = {(r.identity, r.generation): r for r in known.values()}
        for replica, admit in admitted:
            replica.set_admit(admit)
        for replica in gone:
            replica.retire()
        for model in removed:
            model.remove()
        for model in models.values():
            self._on_change(model)

    def _changed(self, replica: Replica) -> None:
        for model in self.models.values():
            if any(entry.replica is replica for entry in model.entries):
                self._on_change(model)

    def _is_last(self, replica: Replica) -> bool:
        """Is there a model this replica alone could serve now?"""
        usable = {Rotation.IN, Rotation.PROBATION}
        return any(
            any(e.replica is replica for e in model.entries)
            and not any(e.replica is not replica and e.replica.rotation in usable for e in model.entries)
            for model in self.models.values()
        )

    def close(self) -> None:
        """Let go of everything."""
        for replica in self._replicas.values():
            replica.retire()
