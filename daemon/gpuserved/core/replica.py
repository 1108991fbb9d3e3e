"""The lifecycle of a replica. Everything that decides a transition lives in this file.

Two rules. The table below says which events a state knows and where they lead; an event that is not in a state's row is
refused to an operator and ignored from anybody else. This file does not act: `step()` returns the effects, and the one task
that owns the replica performs them.

A `goal` is kept beside the state because the way out of DRAINING and STOPPING depends on why they were entered. EXITED follows
it: stop -> STOPPED, restart and replace -> STARTING, serve -> BACKOFF or FAILED by `core/restart.py`. So a START that arrives
while the tree is still being killed only changes the goal, and no start can overtake the death of what it replaces.

DRAINING has two uses: on the way to a stop (goal stop, restart or replace), and for an operator's `drain`, which keeps the
process (goal hold) until `undrain`. A start whose goal is replace is on trial: it becomes READY after a canary, and a failure
of it is a crash like any other, which the rolling change then reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpuserved.core.cause import Cause, CauseKind, Healing
from gpuserved.core.events import (
    OPERATOR_EVENTS,
    VERB_EVENTS,
    ArmTimer,
    CancelTimers,
    Effect,
    Event,
    EventKind,
    KillTree,
    SaveEvidence,
    SetRotation,
    Spawn,
    Terminate,
    Timer,
)
from gpuserved.core.restart import Backoff, decide, forgive, record_crash
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State

Decision = tuple[Replica, tuple[Effect, ...]]
Rule = Callable[[Replica, Event, Context], Decision]


def _enter(r: Replica, state: State, *effects: Effect, reason: str = "", **changes: object) -> Decision:
    """Change state; every change forgets the old state's timers."""
    moved = replace(r, state=state, reason=reason, **changes)  # type: ignore[arg-type]
    return moved, (CancelTimers(), *effects)


_ASKED = frozenset({Goal.STOP, Goal.RESTART, Goal.REPLACE})


def _asked(r: Replica) -> bool:
    """True where its process is to end because somebody wants that; a start on trial that ends has crashed."""
    return r.goal in _ASKED and r.state is not State.STARTING


def _spawn(r: Replica, e: Event, c: Context) -> Decision:
    generation = r.generation + 1
    arm = ArmTimer(Timer.START_STALL, c.health.startup_stall_s)
    goal = Goal.REPLACE if e.kind is EventKind.REPLACE or r.goal is Goal.REPLACE else Goal.SERVE
    return _enter(r, State.STARTING, Spawn(generation), arm, goal=goal, generation=generation)


def _start_afresh(r: Replica, e: Event, c: Context) -> Decision:
    return _spawn(replace(r, history=replace(forgive(r.history), last_cause=None), cause=None), e, c)


def _start_again(r: Replica, e: Event, c: Context) -> Decision:
    return _spawn(replace(r, history=replace(r.history, restarts=r.history.restarts + 1)), e, c)


def _ready(r: Replica, _e: Event, c: Context) -> Decision:
    stable = ArmTimer(Timer.STABLE, c.restart.stable_s)
    lost = r.history.last_cause
    reason = f"restarted after: {lost.message}" if lost else ""
    return _enter(r, State.READY, SetRotation(True), stable, goal=Goal.SERVE, cause=None, reason=reason)


def _stable(r: Replica, _e: Event, _c: Context) -> Decision:
    return replace(r, history=forgive(r.history)), ()


def _hold(r: Replica, _e: Event, _c: Context) -> Decision:
    return _enter(r, State.DRAINING, SetRotation(False), goal=Goal.HOLD, reason="drained by operator")


def _undrain(r: Replica, e: Event, c: Context) -> Decision:
    if r.goal is not Goal.HOLD:
        raise NotAllowed("it is being stopped; start it again once it is STOPPED")
    return _ready(r, e, c)


def _start_draining(r: Replica, e: Event, c: Context) -> Decision:
    if r.goal is Goal.HOLD:
        return _ready(r, e, c)
    goal = r.goal if r.goal is Goal.REPLACE else Goal.RESTART
    return replace(r, goal=goal, reason=f"draining before {goal.value}"), ()


def _go_on(r: Replica, e: Event, c: Context) -> Decision:
    """Wanted again before it was told to end: its process is whole, and a model takes minutes to load."""
    if r.goal is not Goal.STOP:
        return r, ()
    return _start_draining(r, e, c) if c.moves else _ready(r, e, c)


_GOALS = {
    EventKind.START: Goal.RESTART, EventKind.RESTART: Goal.RESTART, EventKind.WANTED: Goal.RESTART,
    EventKind.REPLACE: Goal.REPLACE,
}  # fmt: skip


def _goal_of(event: Event) -> Goal:
    return _GOALS.get(event.kind, Goal.STOP)


def _drain_then_stop(r: Replica, e: Event, c: Context) -> Decision:
    goal = _goal_of(e)
    arm = ArmTimer(Timer.DRAIN, c.limits.rolling_drain_s if goal is Goal.REPLACE else c.limits.drain_s)
    return _enter(
        r, State.DRAINING, SetRotation(False), arm, goal=goal, reason=f"draining before {goal.value}"
    )


def _terminate(r: Replica, e: Event, c: Context) -> Decision:
    goal = _goal_of(e) if e.kind in OPERATOR_EVENTS else r.goal
    arm = ArmTimer(Timer.KILL, c.limits.term_grace_s)
    return _enter(r, State.STOPPING, SetRotation(False), Terminate(), arm, goal=goal, reason="SIGTERM sent")


def _drained(r: Replica, e: Event, c: Context) -> Decision:
    return (r, ()) if r.goal is Goal.HOLD else _terminate(r, e, c)


def _why(e: Event, c: Context) -> Cause:
    """The cause where nobody named one."""
    if e.kind is EventKind.START_STALLED:
        return Cause(
            CauseKind.START_STALLED, f"the start stood still: no progress for {c.health.startup_stall_s:g} s"
        )
    return Cause(CauseKind.UNHEALTHY, f"killed after {e.kind.value}")


def _kill(r: Replica, e: Event, c: Context) -> Decision:
    """Kill what will not end by itself: hung, unhealthy, stalled at start, up without a token to give, or on a failed GPU."""
    cause = e.cause or r.cause or _why(e, c)
    arm = ArmTimer(Timer.KILL, c.limits.term_grace_s)
    evidence = SaveEvidence(cause)
    keep = r.goal if _asked(r) else Goal.SERVE
    return _enter(
        r, State.STOPPING, SetRotation(False), evidence, KillTree(), arm,
        goal=keep, cause=cause, reason=cause.message,
    )  # fmt: skip


def _kill_again(r: Replica, _e: Event, c: Context) -> Decision:
    arm = ArmTimer(Timer.KILL, c.limits.term_grace_s)
    return replace(r, reason="SIGKILL sent; waiting for its processes to go"), (KillTree(), arm)


def _unhealthy(r: Replica, e: Event, c: Context) -> Decision:
    """Out of rotation. A failed liveness probe is given until the hang deadline to recover."""
    rest = max(1.0, c.health.hang_timeout_s - c.health.hang_rotation_s)
    cause = e.cause or Cause(CauseKind.UNHEALTHY, "liveness probes failed")
    arm = ArmTimer(Timer.UNHEALTHY, rest)
    return _enter(r, State.UNHEALTHY, SetRotation(False), arm, cause=cause, reason=cause.message)


def _dying(r: Replica, e: Event, c: Context) -> Decision:
    """The API process is gone: nothing there can serve, whatever its children still do. EXITED will say why."""
    arm = ArmTimer(Timer.KILL, c.limits.term_grace_s)
    asked = _asked(r)
    reason = e.cause.message if e.cause and not asked else "ending its processes"
    goal = r.goal if asked else Goal.SERVE
    return _enter(
        r, State.STOPPING, SetRotation(False), KillTree(), arm, goal=goal, cause=None, reason=reason
    )


def _swept(r: Replica, _e: Event, _c: Context) -> Decision:
    return r, (KillTree(),)


def _set_goal(r: Replica, e: Event, _c: Context) -> Decision:
    """While the old tree ends, an operator's wish only changes what follows."""
    return replace(r, goal=_goal_of(e)), ()


def _wanted_again(r: Replica, e: Event, c: Context) -> Decision:
    return _set_goal(r, e, c) if r.goal is Goal.STOP else (r, ())


def _exited(r: Replica, e: Event, c: Context) -> Decision:
    if r.goal is Goal.STOP:
        return _enter(r, State.STOPPED, SetRotation(False), goal=Goal.STOP)
    if _asked(r):
        return _start_afresh(r, e, c)
    killed_for = r.cause if r.state is State.STOPPING else None
    return _crashed(r, killed_for or e.cause or Cause(CauseKind.EXITED, "ended, and how is not known"), c)


def _spawn_failed(r: Replica, e: Event, c: Context) -> Decision:
    """Nothing came to be, so nothing will report EXITED; in STOPPING an operator's wish overtook the spawn."""
    missing = replace(e, cause=e.cause or Cause(CauseKind.SPAWN_FAILED, "could not be started"))
    return _exited(r, missing, c)


def _crashed(r: Replica, cause: Cause, c: Context) -> Decision:
    history = record_crash(r.history, cause)
    what = decide(history, cause, c.restart, last_of_model=c.last_of_model, jitter=c.jitter)
    if isinstance(what, Backoff):
        arm = ArmTimer(Timer.BACKOFF, what.delay_s)
        return _enter(
            r, State.BACKOFF, SetRotation(False), arm,
            goal=Goal.SERVE, history=history, cause=cause, reason=what.reason,
        )  # fmt: skip
    retry = () if what.retry_s is None else (ArmTimer(Timer.RETRY, what.retry_s),)
    shown = cause if cause.healing in {Healing.NEVER, Healing.ON_RELEASE} else history.first_cause
    return _enter(
        r, State.FAILED, SetRotation(False), *retry,
        goal=Goal.SERVE, history=history, cause=shown, reason=what.reason,
    )  # fmt: skip


def _stopped(r: Replica, _e: Event, _c: Context) -> Decision:
    return _enter(r, State.STOPPED, goal=Goal.STOP)


def _nothing(r: Replica, _e: Event, _c: Context) -> Decision:
    return r, ()


_S, _E = State, EventKind

# Rows are states, entries are the events they know. Absent: refused to an operator, ignored from anybody else.
TABLE: dict[State, dict[EventKind, Rule]] = {
    _S.STOPPED: {
        _E.START: _start_afresh, _E.RESTART: _start_afresh, _E.REPLACE: _start_afresh, _E.WANTED: _start_afresh,
        _E.STOP: _nothing,
    },
    _S.STARTING: {
        _E.PROBE_UP: _ready, _E.START_STALLED: _kill, _E.CANARY_FAILED: _kill, _E.GPU_FAULT: _kill,
        _E.DYING: _dying, _E.EXITED: _exited, _E.SPAWN_FAILED: _spawn_failed, _E.STOP: _terminate,
        _E.RESTART: _terminate, _E.REPLACE: _terminate, _E.START: _nothing, _E.WANTED: _nothing,
    },
    _S.READY: {
        _E.PROBE_DOWN: _unhealthy, _E.STALLED: _unhealthy, _E.HUNG: _kill, _E.GPU_FAULT: _kill, _E.DYING: _dying,
        _E.EXITED: _exited, _E.STABLE: _stable, _E.STOP: _drain_then_stop, _E.RESTART: _drain_then_stop,
        _E.DRAIN: _hold, _E.REPLACE: _drain_then_stop, _E.START: _nothing, _E.UNDRAIN: _nothing, _E.WANTED: _nothing,
    },
    _S.UNHEALTHY: {
        _E.PROBE_UP: _ready, _E.HUNG: _kill, _E.GPU_FAULT: _kill, _E.UNHEALTHY_TIMEOUT: _kill,
        _E.DYING: _dying, _E.EXITED: _exited, _E.STOP: _terminate, _E.RESTART: _terminate,
        _E.REPLACE: _terminate, _E.DRAIN: _hold, _E.START: _nothing, _E.WANTED: _nothing,
    },
    _S.DRAINING: {
        _E.DRAINED: _drained, _E.DRAIN_TIMEOUT: _drained, _E.HUNG: _kill, _E.GPU_FAULT: _kill, _E.DYING: _dying,
        _E.EXITED: _exited, _E.STOP: _drain_then_stop, _E.RESTART: _drain_then_stop,
        _E.REPLACE: _drain_then_stop, _E.UNDRAIN: _undrain, _E.DRAIN: _nothing, _E.START: _start_draining,
        _E.WANTED: _go_on,
    },
    _S.STOPPING: {
        _E.KILL_TIMEOUT: _kill_again, _E.DYING: _swept, _E.EXITED: _exited, _E.SPAWN_FAILED: _spawn_failed,
        _E.START: _set_goal, _E.RESTART: _set_goal, _E.REPLACE: _set_goal, _E.STOP: _set_goal,
        _E.WANTED: _wanted_again,
    },
    _S.BACKOFF: {
        _E.BACKOFF_ELAPSED: _start_again, _E.TAKE_UP: _spawn, _E.START: _start_afresh, _E.RESTART: _start_afresh,
        _E.REPLACE: _start_afresh, _E.WANTED: _start_again, _E.STOP: _stopped,
    },
    _S.FAILED: {
        _E.RETRY_ELAPSED: _start_again, _E.START: _start_afresh, _E.RESTART: _start_afresh,
        _E.REPLACE: _start_afresh, _E.WANTED: _start_afresh, _E.STOP: _stopped,
    },
}  # fmt: skip


def allowed(state: State) -> frozenset[EventKind]:
    """The operator's verbs that `state` knows."""
    return VERB_EVENTS & TABLE[state].keys()


def step(r: Replica, event: Event, context: Context) -> Decision:
    """Decide what one event changes.

    :raises NotAllowed: for an operator's event that the state does not know.
    """
    if event.generation is not None and event.generation != r.generation:
        return r, ()
    rule = TABLE[r.state].get(event.kind)
    if rule is None:
        if event.kind in OPERATOR_EVENTS:
            known = ", ".join(sorted(k.value for k in allowed(r.state)))
            raise NotAllowed(f"a replica that is {r.state.value} cannot {event.kind.value}; it can: {known}")
        return r, ()
    return rule(r, event, context)
