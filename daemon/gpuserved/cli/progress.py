"""Waiting until replicas are ready, and showing how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Internal, NotFound, TimedOut, Unavailable
from gpuserved.api.types import ReplicaView
from gpuserved.cli.session import warn
from gpuserved.cli.text import age, last_state
from gpuserved.host.logtail import clean

if TYPE_CHECKING:
    from rich.table import Table

_POLL_S = 0.25
_LOG_LINES = 20
_GONE_LIMIT_S = 30.0
"""A daemon may restart while its replicas load; longer away than this it is gone."""
_SETTLED = frozenset({"READY", "STOPPED", "DRAINING"})


class ReplicaFailed(Internal):
    """A replica that was waited for has failed."""


@dataclass
class Waiting:
    """What is known of the replicas that are waited for."""

    client: ControlClient
    profiles: frozenset[str]
    show: Callable[[Sequence[ReplicaView], float], None]
    begun: float = field(default_factory=time.monotonic)

    def until_ready(self, limit_s: float) -> list[ReplicaView]:
        """Wait.

        :returns: the replicas; one that an operator has stopped or drained is not waited for.
        :raises ReplicaFailed: with its reason and the last lines of its log.
        :raises TimedOut: after `limit_s`; loading goes on.
        """
        seen_at = time.monotonic()
        while True:
            now = time.monotonic()
            mine: list[ReplicaView] | None = None
            try:
                mine = [one for one in self.client.status().replicas if one.profile in self.profiles]
                seen_at = now
            except (Unavailable, TimedOut):
                if now - seen_at > _GONE_LIMIT_S:
                    raise
            if mine is not None:
                self.show(mine, now - self.begun)
                for one in mine:
                    if one.state == "FAILED":
                        raise self._failed(one)
                if all(one.state in _SETTLED for one in mine):
                    return mine
            if now - self.begun > limit_s:
                states = ", ".join(f"{one.id} {one.state}" for one in mine or () if one.state != "READY")
                raise TimedOut(
                    f"not ready within {limit_s:g} s: {states or 'the daemon does not answer'}",
                    "they go on loading: gpuserve status shows them; --wait S waits longer",
                )
            time.sleep(_POLL_S)

    def _failed(self, replica: ReplicaView) -> GpuserveError:
        try:
            lines = list(self.client.logs(replica.id, lines=_LOG_LINES))
        except (NotFound, Unavailable, TimedOut):
            lines = []
        tail = "".join(f"\n  | {last_state(line)}" for line in lines)
        return ReplicaFailed(
            f"{replica.id} failed: {replica.reason or 'no reason is known'}{tail}",
            f"the whole log: gpuserve logs {replica.id} --previous; after a correction: gpuserve restart {replica.id}",
        )


def wait_ready(client: ControlClient, profiles: frozenset[str], limit_s: float) -> list[ReplicaView]:
    """Wait with a live table on a terminal, else with one line per change. See `Waiting.until_ready`."""
    if not sys.stderr.isatty():
        return Waiting(client, profiles, Lines()).until_ready(limit_s)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(replicas: Sequence[ReplicaView], elapsed_s: float) -> None:
            live.update(progress_table(replicas, elapsed_s), refresh=True)

        return Waiting(client, profiles, show).until_ready(limit_s)


class Lines:
    """One line whenever a replica's state, phase or reason changes."""

    def __init__(self, write: Callable[[str], Any] = warn) -> None:
        self._write = write
        self._last: dict[str, str] = {}

    def __call__(self, replicas: Sequence[ReplicaView], elapsed_s: float) -> None:
        """Write what is new."""
        for replica in replicas:
            line = f"{clean(replica.id)}  {replica.state}{_what(replica)}"
            if self._last.get(replica.id) != line:
                self._last[replica.id] = line
                self._write(f"[{age(elapsed_s):>5}] {line}")


def progress_table(replicas: Sequence[ReplicaView], elapsed_s: float) -> Table:
    """Replica, state, phase, elapsed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("REPLICA", "STATE", "WHAT", "FOR"):
        table.add_column(column, no_wrap=column != "WHAT")
    now = time.time()
    styles = {"READY": "green", "FAILED": "red", "BACKOFF": "yellow", "UNHEALTHY": "yellow"}
    for replica in replicas:
        since = elapsed_s if replica.started_at is None else now - replica.started_at
        table.add_row(
            Text(clean(replica.id)),
            Text(replica.state, style=styles.get(replica.state, "")),
            Text(_what(replica).strip()),
            Text(age(since)),
        )
    return table


def _what(replica: ReplicaView) -> str:
    said = replica.phase if replica.state == "STARTING" and replica.phase else replica.reason
    return f"  {clean(said)}" if said and replica.state != "READY" else ""
