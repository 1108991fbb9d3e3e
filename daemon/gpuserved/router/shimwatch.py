"""A connection to a replica's shim: the fastest proof of a death, and what makes the router the replica's keeper."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from gpuserved.host.deadline import within

_LINE_MAX_BYTES = 64 * 1024
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_ANSWER_S = 5.0

log = logging.getLogger(__name__)


class ShimWatch:
    """Stays connected until closed. `on_dead` is called once: for `dying`, `exited`, an exit in the greeting, or the
    end of a connection that had greeted us (the shim ends after its replica, or takes it along).
    """

    def __init__(self, path: str, on_dead: Callable[[], None]) -> None:
        self._path = path
        self._on_dead = on_dead
        self.connected = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Stop watching."""
        self._task.cancel()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=_LINE_MAX_BYTES)
            except OSError:
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            try:
                dead = await self._watch(reader, writer)
            except (OSError, ValueError, asyncio.TimeoutError, TimeoutError, msgspec.MsgspecError) as error:
                log.warning("shim %s: %s", self._path, error or type(error).__name__)
                dead = self.connected and isinstance(error, OSError)
            finally:
                self.connected = False
                writer.close()
            if dead:
                self._on_dead()
                return
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True: the replica is dead. False: the connection never became one."""
        writer.write(b'{"op":"hello","who":"router"}\n{"op":"watch"}\n')
        greeting = await within(_line(reader), _ANSWER_S)
        if greeting is None or not greeting.get("ok"):
            return False
        if greeting.get("exit") is not None or greeting.get("running") is False:
            return True
        watching = await within(_line(reader), _ANSWER_S)
        self.connected = watching is not None and bool(watching.get("ok"))
        while True:
            event = await _line(reader)
            if event is None or event.get("event") in {"dying", "exited"}:
                return True


async def _line(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next object; None: the connection ended.

    :raises ValueError: a line that is too long; :raises MsgspecError: not an object.
    """
    line = await reader.readline()
    return msgspec.json.decode(line, type=dict[str, Any]) if line.endswith(b"\n") else None
