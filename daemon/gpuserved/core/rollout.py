"""A rolling change: replicas are replaced one by one, and the first that fails turns the change back.

`decide()` looks at the replicas as they are now (it reacts to levels, not to edges), so it may be asked at any time and as often as
one likes, also by a daemon that was started in the middle of a change and knows no more than what was saved.

What holds whatever the replicas do:

* one replica at a time is being replaced;
* a replica that serves is taken away only while every other one that is meant to serve does, so that the change itself costs
  at most one replica of capacity (replicas that are down are replaced first: that costs nothing);
* the change ends with every replica on the new settings, or with every one back on the former. Where the former settings do
  not start either, or there are none to go back to, it stops at once and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from gpuserved.core.state import Goal, State


class Direction(str, Enum):
    """Towards the new settings, or back to the former. Wire values."""

    FORWARD = "forward"
    BACK = "back"


class Outcome(str, Enum):
    """How a rolling change ended. Wire values."""

    DONE = "done"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"
    """A replica failed, and there was nothing to go back to."""


@dataclass(frozen=True)
class Rollout:
    """How far a rolling change is. Saved after every decision."""

    pending: tuple[str, ...]
    """Replicas still to be replaced."""
    added: tuple[str, ...] = ()
    """Those of them that did not run before: nothing to drain, and nothing to go back to but a stop."""
    done: tuple[str, ...] = ()
    current: str | None = None
    since_generation: int = 0
    """The current replica's generation when its replacement was ordered; a later one runs the new settings."""
    direction: Direction = Direction.FORWARD
    reversible: bool = True
    """False: what ran before was the same settings (a restart, an environment changed in place)."""
    outcome: Outcome | None = None
    reason: str = ""
    """What it waits for, or why it was turned back or stopped."""

    @property
    def total(self) -> int:
        """Replicas that it is about."""
        return len(self.pending) + len(self.done) + (self.current is not None)


@dataclass(frozen=True)
class Seen:
    """One replica of the model, as it is now."""

    state: State
    goal: Goal
    generation: int
    reason: str = ""


@dataclass(frozen=True)
class Replace:
    """Order the replacement of `Rollout.current`."""

    replica: str


@dataclass(frozen=True)
class Leave:
    """An operator has stopped this replica: what it would run next changes, and it stays stopped."""

    replica: str


@dataclass(frozen=True)
class TurnBack:
    """From now on replicas get the former settings; these, which there were none of before, are stopped."""

    stop: tuple[str, ...]


Action = Replace | Leave | TurnBack
Decision = tuple[Rollout, Action | None]

_FAILED = frozenset({State.BACKOFF, State.FAILED})


def decide(rollout: Rollout, seen: Mapping[str, Seen]) -> Decision:
    """The next step. Ask again until nothing changes and no action is returned.

    :param seen: every replica of the model, also those that are not to be replaced: they are its capacity.
    """
    if rollout.outcome is not None:
        return rollout, None
    if rollout.current is not None:
        return _look_at_current(rollout, rollout.current, seen.get(rollout.current))
    gone = [name for name in rollout.pending if name not in seen]
    if gone:
        return replace(rollout, pending=tuple(p for p in rollout.pending if p not in gone)), None
    if not rollout.pending:
        back = rollout.direction is Direction.BACK
        reason = rollout.reason if back else ""
        return replace(rollout, outcome=Outcome.ROLLED_BACK if back else Outcome.DONE, reason=reason), None
    return _begin_next(rollout, seen)


def _look_at_current(rollout: Rollout, name: str, s: Seen | None) -> Decision:
    if s is None:
        return replace(rollout, current=None), None
    if s.goal is Goal.STOP and not _waits_for_its_order(rollout, name, s):
        # An operator stopped it. What it runs when it is started again has been assigned already.
        return replace(rollout, current=None), None
    if s.generation <= rollout.since_generation:
        return rollout, None  # still draining, or being stopped
    if s.state is State.READY:
        return replace(rollout, current=None, done=(*rollout.done, name)), None
    if s.state in _FAILED and not _broken_off(s):
        return _failed(rollout, name, s)
    return rollout, None


def _broken_off(s: Seen) -> bool:
    """Its start ended with the daemon that was at it, and is taken up again: whoever failed by itself has a reason."""
    return s.state is State.BACKOFF and not s.reason


def _waits_for_its_order(rollout: Rollout, name: str, s: Seen) -> bool:
    """One that did not run before is still STOPPED until its controller has read the order."""
    return name in rollout.added and s.state is State.STOPPED and s.generation <= rollout.since_generation


def _failed(rollout: Rollout, name: str, s: Seen) -> Decision:
    reason = f"{name}: {s.reason}" if s.reason else f"{name} did not start"
    if rollout.direction is Direction.BACK:
        said = f"{rollout.reason}; and with the former settings: {reason}"
        return replace(rollout, current=None, outcome=Outcome.STOPPED, reason=said), None
    if not rollout.reversible:
        return replace(rollout, current=None, outcome=Outcome.STOPPED, reason=reason), None
    touched = (name, *reversed(rollout.done))
    turned = replace(
        rollout,
        pending=tuple(each for each in touched if each not in rollout.added),
        added=(),
        done=(),
        current=None,
        direction=Direction.BACK,
        reason=reason,
    )
    return turned, TurnBack(rollout.added)


def _begin_next(rollout: Rollout, seen: Mapping[str, Seen]) -> Decision:
    for name in rollout.pending:
        if seen[name].goal is Goal.STOP and name not in rollout.added:
            rest = tuple(p for p in rollout.pending if p != name)
            return replace(rollout, pending=rest), Leave(name)
    down = [p for p in rollout.pending if _is_down(seen[p])]
    if down:
        return _begin(rollout, down[0], seen)
    ready = [p for p in rollout.pending if seen[p].state is State.READY]
    if not ready:
        name = rollout.pending[0]
        hint = " (undrain or stop it)" if seen[name].goal is Goal.HOLD else ""
        return _waiting(rollout, f"{name} is {seen[name].state.value}{hint}"), None
    missing = [n for n, s in seen.items() if n != ready[0] and not serves(s) and meant_to_serve(s)]
    if missing:
        said = ", ".join(f"{name} is {seen[name].state.value}" for name in missing)
        return _waiting(rollout, said), None
    return _begin(rollout, ready[0], seen)


def _is_down(s: Seen) -> bool:
    """One that was let go and is wanted again is still on its way out: an order would be taken for another wish."""
    return s.state is State.STOPPED or (not s.state.serves and s.goal is not Goal.STOP)


def _waiting(rollout: Rollout, what: str) -> Rollout:
    """The reason of a change that was turned back stays: what it waits for matters less."""
    return rollout if rollout.direction is Direction.BACK else replace(rollout, reason=f"waits: {what}")


def _begin(rollout: Rollout, name: str, seen: Mapping[str, Seen]) -> Decision:
    begun = replace(
        rollout,
        pending=tuple(p for p in rollout.pending if p != name),
        current=name,
        since_generation=seen[name].generation,
        reason=rollout.reason if rollout.direction is Direction.BACK else "",
    )
    return begun, Replace(name)


def serves(s: Seen) -> bool:
    """True where requests may go there."""
    return s.state is State.READY


def meant_to_serve(s: Seen) -> bool:
    """False where an operator has stopped or drained it: it is nobody's capacity."""
    return s.goal not in {Goal.STOP, Goal.HOLD}
