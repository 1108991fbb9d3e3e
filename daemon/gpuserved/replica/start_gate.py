"""Who may start now: one start per GPU at a time, and the first replica of a model alone.

Two engines that start on one GPU bill each other's memory; eight that compile the same kernels at once take longer than one after
the other, and the later ones find the first one's caches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable


class StartGate:
    """Belongs to one event loop. Waiters are served in the order they came, as soon as their turn does not collide."""

    def __init__(self) -> None:
        self._inside: dict[str, frozenset[Hashable]] = {}
        self._waiting: dict[str, tuple[frozenset[Hashable], asyncio.Future[None]]] = {}
        self._warm: set[Hashable] = set()

    async def enter(self, replica: str, gpus: tuple[str, ...], model: Hashable) -> None:
        """Wait for the turn. Cancelling gives it up."""
        wanted: frozenset[Hashable] = frozenset(("gpu", uuid) for uuid in gpus) | {("model", model)}
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[replica] = (wanted, turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(replica, None)
            self.leave(replica)
            raise

    def warmed(self, model: Hashable) -> None:
        """A replica of `model` has become ready: the others need not wait for each other."""
        self._warm.add(("model", model))
        self._admit()

    def leave(self, replica: str) -> None:
        """The start is over, however it ended."""
        if self._inside.pop(replica, None) is not None:
            self._admit()

    def _admit(self) -> None:
        for replica, (wanted, turn) in list(self._waiting.items()):
            needed = wanted - self._warm
            taken = frozenset().union(*self._inside.values()) if self._inside else frozenset()
            if needed & taken:
                continue
            del self._waiting[replica]
            self._inside[replica] = needed
            if not turn.done():
                turn.set_result(None)
