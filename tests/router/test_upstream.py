"""One connection to a replica, driven by hand: what its sink is told, in whatever order things happen."""

from __future__ import annotations

import asyncio

from gpuserved.router.attempt import Attempt
from gpuserved.router.upstream_connection import Upstream


class Gone(asyncio.Transport):
    """The transport of a connection that the other end has reset."""

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        """It has ended."""


async def test_a_connection_lost_before_its_request_is_a_lost_answer() -> None:
    """A killed replica's kernel accepts and resets before the task that connected runs on. Whoever waited for the answer then
    waited for ever: the write went nowhere, and the end had been told to nobody.
    """
    upstream = Upstream()
    upstream.connection_made(Gone())
    upstream.connection_lost(ConnectionResetError())
    attempt = Attempt(upstream)
    told: list[bool] = []
    attempt.when_known(lambda: told.append(attempt.lost))
    assert told == [True]
    assert not upstream.reusable
