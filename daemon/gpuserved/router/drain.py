"""How a router ends: what its clients may still have of it, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

LIMIT_S = 30.0
"""Where nobody says otherwise."""
POLL_S = 0.02


class Idling(Protocol):
    """A client's connection."""

    def idle(self) -> bool:
        """No request is being read or served."""

    def close(self) -> None:
        """Close it."""


class Drain:
    """The terms of the end. They may change while it lasts: `set` is the supervisor's word by the control socket."""

    def __init__(self) -> None:
        self.begun = False
        self._limit_s = LIMIT_S
        """From the beginning of the end."""
        self._keep_idle = False
        """Leave idle connections open until their next answer has said `Connection: close`, or until they time out as ever. A
        request may be on its way on each of them, and would fail if it were closed now. This is for a router whose successor
        serves already; where the port goes too, idle connections are closed at once.
        """

    def set(self, limit_s: float, keep_idle: bool) -> None:
        """New terms."""
        self._limit_s = limit_s
        self._keep_idle = keep_idle

    async def wait(self, clients: AbstractSet[Idling], busy: Callable[[], int]) -> None:
        """Until nothing is under way any more, or the limit has passed.

        :param busy: how many requests are under way.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.begun = True
        while loop.time() < began + self._limit_s:
            if not self._keep_idle:
                for client in [client for client in clients if client.idle()]:
                    client.close()
            if not busy() and not (self._keep_idle and clients):
                return
            await asyncio.sleep(POLL_S)
