"""The public port at a daemon's start: the one that routers hold already, systemd's, or a new one."""

from __future__ import annotations

import asyncio
import socket
import time

from msgspec import structs

from gpuserved.api.errors import Conflict, Refused
from gpuserved.config.daemon import DaemonConfig
from gpuserved.fleet.fleet import Fleet
from gpuserved.host import listen
from gpuserved.host.failpoint import reach
from gpuserved.host.systemd import PortStore

FREED_S = 2.0
"""How long a router that an earlier daemon had begun to start may hold the port, before somebody else must be holding it."""
_POLL_S = 0.05


async def open_port(fleet: Fleet, config: DaemonConfig, store: PortStore, *, asked: bool) -> None:
    """Adopt the router with its socket, or take or bind one and start a router on it. systemd's store holds the same from then on.

    :raises Conflict: a router serves another address than was asked for.
    :raises Refused: the port is taken.
    """
    router = fleet.router
    last = router.table_on_disk()
    fleet.table_generation = last.generation if last is not None else 0
    if await router.adopt():
        assert router.listener is not None
        host, port = router.listener.getsockname()[:2]
        if asked and (port != config.port or host != config.host):
            await router.detach()
            raise Conflict(
                f"the router of this root already serves {host}:{port}, and {config.listen} is asked for",
                "run `gpuserve down` first, or leave --listen away",
            )
        await store.hold(router.listener)
    else:
        listener = store.of_unit() or await store.take_back(config.listen) or await _bind(fleet, config)
        reach("router.bound")
        await store.hold(listener)
        reach("router.stored")
        if last is None or not last.models:
            fleet.publish_routes(force=True)
        elif last.tls != fleet.tls:
            # A router begins with the table on disk: not in the clear where TLS is wanted by now.
            fleet.table_generation += 1
            router.push(structs.replace(last, generation=fleet.table_generation, tls=fleet.tls))
        await router.start(listener)
        reach("router.started")
    assert router.listener is not None
    fleet.endpoint = listen.url_of(router.listener, tls=fleet.tls is not None)


async def _bind(fleet: Fleet, config: DaemonConfig) -> socket.socket:
    """The public port. A shim of the router that an earlier daemon was starting when it was killed lets go of it in a moment.

    :raises Refused: it is taken.
    """
    deadline = time.monotonic() + (FREED_S if fleet.router.was_here else 0)
    while True:
        try:
            return listen.bind(config.listen)
        except Refused:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL_S)
