"""Waiting until replicas are ready and rolling changes over, and showing how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Internal, NotFound, TimedOut, Unavailable
from gpuserved.api.types import ReplicaView, RolloutView, Status
from gpuserved.cli.session import warn
from gpuserved.cli.text import age, last_state, rollout_line
from gpuserved.host.logtail import clean

if TYPE_CHECKING:
    from rich.table import Table

_POLL_S = 0.25
_LOG_LINES = 20
_GONE_LIMIT_S = 30.0
"""A daemon may restart while its replicas load, or in the middle of a change, and goes on with it; longer away than this it is gone."""
_SETTLED = frozenset({"READY", "STOPPED", "DRAINING"})


class ReplicaFailed(Internal):
    """A replica that was waited for has failed."""


class RolledBack(Internal):
    """A rolling change that was waited for was turned back or stopped."""


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
    """Wait with a live table on a terminal, else with one line per change.

    :returns: the replicas; one that an operator has stopped or drained is not waited for.
    :raises ReplicaFailed: with its reason and the last lines of its log.
    :raises TimedOut: after `limit_s`; loading goes on.
    """
    if not sys.stderr.isatty():
        return Waiting(client, profiles, Lines()).until_ready(limit_s)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(replicas: Sequence[ReplicaView], elapsed_s: float) -> None:
            live.update(_progress_table(replicas, elapsed_s), refresh=True)

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


def _progress_table(replicas: Sequence[ReplicaView], elapsed_s: float) -> Table:
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


Show = Callable[[Status, Sequence[RolloutView]], None]


def wait_rolled(
    client: ControlClient, profiles: frozenset[str], since: float, limit_s: float | None = None
) -> None:
    """Wait until no rolling change of these profiles is under way. Interrupted, the change goes on in the daemon.

    :param since: Unix seconds; the outcome of a change that began and ended before is none of this wait's business.
    :raises RolledBack: one was turned back or stopped; says why.
    :raises TimedOut: after `limit_s`; the change goes on.
    """
    until = None if limit_s is None else time.monotonic() + limit_s
    if not any(one.profile in profiles for one in client.status().rollouts):
        return
    if not sys.stderr.isatty():
        _wait(client, profiles, since, until, RolloutLines())
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    begun = time.monotonic()
    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(status: Status, rolls: Sequence[RolloutView]) -> None:
            mine = [one for one in status.replicas if one.profile in profiles]
            lines = [Text(clean(rollout_line(roll))) for roll in rolls]
            live.update(Group(*lines, _progress_table(mine, time.monotonic() - begun)), refresh=True)

        _wait(client, profiles, since, until, show)


def _wait(
    client: ControlClient, profiles: frozenset[str], since: float, until: float | None, show: Show
) -> None:
    followed: set[tuple[str, float]] = set()
    seen_at = time.monotonic()
    while True:
        try:
            status = client.status()
            seen_at = time.monotonic()
        except (Unavailable, TimedOut):
            if time.monotonic() - seen_at > _GONE_LIMIT_S:
                raise
            time.sleep(_POLL_S)
            continue
        rolls = [one for one in status.rollouts if one.profile in profiles]
        followed |= {(one.profile, one.began_at) for one in rolls if one.outcome is None}
        mine = [one for one in rolls if (one.profile, one.began_at) in followed or one.began_at >= since]
        show(status, mine)
        if all(one.outcome is not None for one in mine):
            failed = [one for one in mine if one.outcome != "done"]
            if failed:
                raise RolledBack(
                    "; ".join(rollout_line(one) for one in failed),
                    "the start that failed: gpuserve crash REPLICA, and its log: gpuserve logs REPLICA --previous",
                )
            return
        if until is not None and time.monotonic() > until:
            said = "; ".join(rollout_line(one) for one in mine if one.outcome is None)
            raise TimedOut(f"still under way: {said}", "it goes on: gpuserve status shows it")
        time.sleep(_POLL_S)


class RolloutLines:
    """One line whenever a change takes a step or a replica of it changes its state."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __call__(self, status: Status, rolls: Sequence[RolloutView]) -> None:
        """Write what is new."""
        for roll in rolls:
            self._say(roll.profile, rollout_line(roll))
            current = next((one for one in status.replicas if one.id == roll.current), None)
            if current is not None:
                self._say(current.id, _replica_line(current))

    def _say(self, about: str, line: str) -> None:
        if self._last.get(about) != line:
            self._last[about] = line
            warn(clean(line))


def _replica_line(replica: ReplicaView) -> str:
    what = replica.phase if replica.state == "STARTING" and replica.phase else replica.reason
    flying = f", {replica.in_flight} in flight" if replica.state == "DRAINING" and replica.in_flight else ""
    return f"  {replica.id}  {replica.state}{flying}" + (f"  {what}" if what else "")
