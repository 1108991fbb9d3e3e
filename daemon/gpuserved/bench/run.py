"""The open loop: every request goes out when it is due, however many are still in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gpuserved.bench.connection import Connection, connect
from gpuserved.bench.figures import Outcome, Result, read
from gpuserved.bench.plan import Planned
from gpuserved.host.deadline import within

IDLE_MAX_S = 3.0
"""Connections idle longer are not used again: vLLM closes them after 5 s."""
PROGRESS_S = 0.25


@dataclass(frozen=True)
class Target:
    """Where requests go: the router, or one replica."""

    name: str
    address: str
    """`tcp:HOST:PORT` or `unix:PATH`."""
    path: str = "/v1/chat/completions"


@dataclass
class Progress:
    """How far a run is."""

    total: int
    elapsed_s: float = 0.0
    sent: int = 0
    results: list[Result] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """Sent and not answered."""
        unsent = sum(result.outcome is Outcome.UNSENT for result in self.results)
        return self.sent - (len(self.results) - unsent)


class Run:
    """One load on one or several targets, which take turns."""

    def __init__(
        self,
        planned: Sequence[Planned],
        targets: Sequence[Target],
        *,
        key: str | None,
        timeout_s: float,
        in_flight_max: int,
        show: Callable[[Progress], None],
    ) -> None:
        self._planned = planned
        self._targets = targets
        self._key = key
        self._timeout_s = timeout_s
        self._in_flight_max = in_flight_max
        self._show = show
        self._idle: dict[str, list[tuple[float, Connection]]] = {}
        self.progress = Progress(len(planned))

    async def run(self) -> list[Result]:
        """All results, in the order in which they ended."""
        start = time.perf_counter() + 0.05
        tasks: set[asyncio.Task[None]] = set()
        shown = asyncio.ensure_future(self._keep_showing(start))
        try:
            for number, one in enumerate(self._planned):
                due = start + one.at_s
                wait_s = due - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if len(tasks) >= self._in_flight_max:
                    self.progress.results.append(Result(Outcome.UNSENT, why=f"{len(tasks)} were in flight"))
                    continue
                target = self._targets[number % len(self._targets)]
                self.progress.sent += 1
                task = asyncio.ensure_future(self._one(one, target, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            shown.cancel()
            for task in tasks:
                task.cancel()
            for idle in self._idle.values():
                for _, connection in idle:
                    connection.close()
        self.progress.elapsed_s = time.perf_counter() - start
        self._show(self.progress)
        return self.progress.results

    async def _keep_showing(self, start: float) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            self.progress.elapsed_s = max(0.0, time.perf_counter() - start)
            self._show(self.progress)

    async def _one(self, planned: Planned, target: Target, due: float) -> None:
        try:
            result = await self._exchange(planned, target, due)
        except (OSError, asyncio.TimeoutError) as error:
            result = Result(
                Outcome.LOST, target.name if self._direct else None, f"{type(error).__name__}: {error}"
            )
        self.progress.results.append(result)

    @property
    def _direct(self) -> bool:
        return len(self._targets) > 1 or self._targets[0].name != "router"

    async def _exchange(self, planned: Planned, target: Target, due: float) -> Result:
        request = self._request(planned, target)
        while True:
            connection, reused = await self._connection(target.address)
            sent = time.perf_counter()
            try:
                reply = await within(connection.ask(request), self._timeout_s)
            except asyncio.TimeoutError:
                connection.close()
                return Result(
                    Outcome.LOST,
                    target.name if self._direct else None,
                    f"no end within {self._timeout_s:g} s",
                )
            if reused and not reply.whole and not reply.status:
                continue  # the server was closing this idle connection: nothing was processed
            break
        ended = time.perf_counter()
        if reply.whole and reply.keep_alive:
            self._idle.setdefault(target.address, []).append((ended, connection))
        else:
            connection.close()
        result = read(reply, due=due, sent=sent, ended=ended)
        return replace(result, replica=target.name) if self._direct else result

    async def _connection(self, address: str) -> tuple[Connection, bool]:
        idle = self._idle.setdefault(address, [])
        while idle:
            since, connection = idle.pop()
            if not connection.closed and time.perf_counter() - since < IDLE_MAX_S:
                return connection, True
            connection.close()
        return await connect(address), False

    def _request(self, planned: Planned, target: Target) -> bytes:
        body = planned.body
        lines = [
            f"POST {target.path} HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        if self._key:
            lines.append(f"authorization: Bearer {self._key}")
        return "\r\n".join([*lines, "", ""]).encode() + body
