"""Rolling changes in one line: which step, which replica, and whether its canary has answered."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserve_tui.view import cells as c
from gpuserve_tui.view.cells import Cell
from gpuserved.api.types import ReplicaView, RolloutView, Status


def rollout_line(status: Status, now: float) -> list[Cell]:
    """The changes that are under way; empty: there is none.

    :param now: Unix seconds.
    """
    line: list[Cell] = []
    for roll in status.rollouts:
        if roll.outcome is not None:
            continue
        back = roll.direction == "back"
        step = min(roll.total, roll.done + (roll.current is not None))
        what = "rolling back" if back else "rolling change"
        line += [
            Cell("   " if line else ""),
            Cell(f"{c.plain(roll.profile)}: {what}", "warn" if back else "info"),
            Cell(f" {step} of {roll.total} ({c.age(max(0.0, now - roll.began_at))})"),
            *_current(roll, status.replicas),
        ]
    return line


def _current(roll: RolloutView, replicas: Sequence[ReplicaView]) -> list[Cell]:
    """The replica that is being replaced, else what is waited for."""
    replica = next((each for each in replicas if each.id == roll.current), None)
    reason = [Cell(f"  {c.plain(roll.reason)}", "dim")] if roll.reason else []
    if replica is None:
        return reason
    return [
        Cell(f"  {c.plain(replica.id)}: {_doing(replica)}"),
        *(reason if roll.direction == "back" else []),
    ]


def _doing(replica: ReplicaView) -> str:
    if replica.state == "STARTING":
        if replica.phase == "canary":
            return "canary asked, no answer yet"
        return f"{c.plain(replica.phase or 'starting')}, then canary"
    if replica.state == "DRAINING":
        return f"drains, {c.count(replica.in_flight)} in flight"
    return replica.state.lower()


def outcome(roll: RolloutView) -> str:
    """How a change ended that did not succeed; empty: it did, or goes on."""
    said = {"rolled_back": "rolled back to what ran before", "stopped": "rolling change stopped"}
    head = said.get(roll.outcome or "", "")
    return f"{roll.profile}: {head}" + (f": {roll.reason}" if roll.reason else "") if head else ""
