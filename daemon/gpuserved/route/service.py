"""The router alone: a routing table from health checks and lists of models instead of a supervisor."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.routing import ApiKey, ModelRoute, ReplicaRoute, RoutingTable
from gpuserved.core.upstream import UpstreamRow, admitted
from gpuserved.engines.vllm.like import vllm_cache_metrics
from gpuserved.route.address import Address
from gpuserved.route.watch import Watch
from gpuserved.router.server import Router

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What can be read again while requests run."""

    upstreams: Sequence[Address]
    keys: Sequence[ApiKey]


@dataclass(frozen=True)
class Seen:
    """One upstream as the table needs it."""

    where: Address
    row: UpstreamRow
    models: tuple[str, ...]
    health_path: str


def table_of(
    seen: Sequence[Seen], *, generation: int, policy: str, override: str | None, keys: Sequence[ApiKey]
) -> RoutingTable:
    """The routing table.

    :param override: serve every upstream under this one name, whatever it calls its first model.
    """
    takes: Mapping[str, UpstreamRow] = {one.where.id: one.row for one in seen}
    open_to = admitted(takes)
    routes: dict[str, list[ReplicaRoute]] = {} if override is None else {override: []}
    for one in seen:
        names = one.models if override is None else (override,)
        own = one.models[0] if override is not None and one.models and override not in one.models else None
        for name in names:
            routes.setdefault(name, []).append(
                ReplicaRoute(
                    id=one.where.id, generation=1, address=one.where.address, admit=one.where.id in open_to,
                    upstream_model=own, health_path=one.health_path,
                    cache_metrics=vllm_cache_metrics("/metrics"),
                )
            )  # fmt: skip
    models = [
        ModelRoute(name=name, profile=name, policy=policy, replicas=replicas)
        for name, replicas in routes.items()
    ]
    return RoutingTable(generation=generation, models=models, keys=list(keys))


class Service:
    """The upstreams' watches and the router in front of them."""

    def __init__(
        self,
        listener: socket.socket,
        read: Callable[[], Wanted],
        *,
        policy: str,
        override: str | None,
        health_path: str,
    ) -> None:
        self._listener = listener
        self._read = read
        self._policy = policy
        self._override = override
        self._health_path = health_path
        self._wanted = read()
        self._watches: dict[str, Watch] = {}
        self._generation = 0
        self._router: Router | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in flight. A second signal ends at once."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, stop)
        loop.add_signal_handler(signal.SIGHUP, self._spawn_reload)
        with tempfile.TemporaryDirectory(prefix="gpuserve-route-") as folder:
            self._router = Router(
                self._listener, Path(folder) / "routing.json", str(Path(folder) / "ctl.sock")
            )
            await self._watch(self._wanted.upstreams)
            self._apply()
            if not any(watch.row.up for watch in self._watches.values()):
                log.warning("no upstream answers yet: requests wait until one does")
            await self._router.run(stop)
        for watch in self._watches.values():
            watch.close()
        log.info("stopped")

    def _asked_to_stop(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            raise SystemExit(1)
        log.info("stopping: requests in flight are finished; once more ends at once")
        stop.set()

    def _spawn_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        try:
            wanted = self._read()
        except Invalid as error:
            log.error("not reloaded, nothing changes: %s", error.message)  # noqa: TRY400 - the sentence is enough
            return
        self._wanted = wanted
        for watch in self._watches.values():
            watch.refresh()
        await self._watch(wanted.upstreams)
        self._apply()
        log.info("reloaded: %d upstreams, %d keys", len(wanted.upstreams), len(wanted.keys))

    async def _watch(self, upstreams: Sequence[Address]) -> None:
        """Watch just these."""
        wanted = {one.id: one for one in upstreams}
        for name in [name for name in self._watches if name not in wanted]:
            self._watches.pop(name).close()
            log.info("%s: no longer an upstream; its requests in flight go on", name)
        fresh = {
            name: Watch(one, self._health_path, self._apply)
            for name, one in wanted.items()
            if name not in self._watches
        }
        await asyncio.gather(*(watch.start() for watch in fresh.values()))
        known = {**self._watches, **fresh}
        self._watches = {name: known[name] for name in wanted}

    def _apply(self) -> None:
        if self._router is None:
            return
        self._generation += 1
        seen = [
            Seen(watch.where, watch.row, watch.models, watch.health_path) for watch in self._watches.values()
        ]
        self._router.apply(
            table_of(
                seen,
                generation=self._generation,
                policy=self._policy,
                override=self._override,
                keys=self._wanted.keys,
            )
        )
