"""Waiting for rolling changes, and showing how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Internal, TimedOut, Unavailable
from gpuserved.api.types import ReplicaView, RolloutView, Status
from gpuserved.cli.progress import progress_table
from gpuserved.cli.session import warn
from gpuserved.cli.text import rollout_line
from gpuserved.host.logtail import clean

_POLL_S = 0.25
_GONE_LIMIT_S = 30.0
"""A daemon may restart in the middle of a change, and goes on with it; longer away than this it is gone."""


class RolledBack(Internal):
    """A rolling change that was waited for was turned back or stopped."""


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
        _wait(client, profiles, since, until, Lines())
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    begun = time.monotonic()
    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(status: Status, rolls: Sequence[RolloutView]) -> None:
            mine = [one for one in status.replicas if one.profile in profiles]
            lines = [Text(clean(rollout_line(roll))) for roll in rolls]
            live.update(Group(*lines, progress_table(mine, time.monotonic() - begun)), refresh=True)

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


class Lines:
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
