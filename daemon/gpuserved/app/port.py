"""The public port at a daemon's start: the one that routers hold already, systemd's, or a new one."""

from __future__ import annotations

import asyncio
import socket
import time

from gpuserved.api.errors import Conflict, Refused
from gpuserved.config.daemon import DaemonConfig
from gpuserved.fleet.observers import Routes
from gpuserved.host import listen
from gpuserved.host.failpoint import reach
from gpuserved.host.systemd import PortStore
from gpuserved.routers.routers import Routers

FREED_S = 2.0
"""How long a router that an earlier daemon had begun to start may hold the port, before somebody else must be holding it."""
_POLL_S = 0.05


async def open_port(
    routers: Routers, routes: Routes, config: DaemonConfig, store: PortStore, *, asked: bool
) -> None:
    """Adopt the routers with their socket, or take or bind one and start routers on it. systemd's store holds the same from then on.

    :param asked: the address is what somebody has asked for this time.
    :raises Conflict: a router serves another address than was asked for.
    :raises Refused: the port is taken.
    """
    if await routers.adopt():
        assert routers.listener is not None
        host, port = routers.listener.getsockname()[:2]
        if asked and (port != config.port or host != config.host):
            await routers.detach()
            raise Conflict(
                f"the router of this root already serves {host}:{port}, and {config.listen} is asked for",
                "run `gpuserve down` first, or leave --listen away",
            )
        await store.hold(routers.listener)
        return
    listener = store.of_unit() or await store.take_back(config.listen) or await _bind(routers, config)
    reach("router.bound")
    await store.hold(listener)
    reach("router.stored")
    routes.publish_first()
    await routers.start(listener)
    reach("router.started")


async def _bind(routers: Routers, config: DaemonConfig) -> socket.socket:
    """The public port. A shim of the router that an earlier daemon was starting when it was killed lets go of it in a moment.

    :raises Refused: it is taken.
    """
    deadline = time.monotonic() + (FREED_S if routers.was_here else 0)
    while True:
        try:
            return listen.bind(config.listen)
        except Refused:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_POLL_S)
