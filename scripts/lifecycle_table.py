# ruff: noqa: INP001 - a program of its own, not part of a package
"""Write docs/lifecycle.md from the lifecycle table in core/replica.py, by asking it. Usage: make docs"""

from __future__ import annotations

from pathlib import Path

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import OPERATOR_EVENTS, Event, EventKind
from gpuserved.core.replica import TABLE, step
from gpuserved.core.restart import RestartHistory
from gpuserved.core.state import Context, Goal, NotAllowed, Replica, State

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lifecycle.md"
MEANING = {
    State.STOPPED: "not wanted; nothing runs",
    State.STARTING: "started, loading; `/health` has not answered yet",
    State.READY: "in rotation",
    State.UNHEALTHY: "alive but silent or without progress; out of rotation, may recover",
    State.DRAINING: "out of rotation; requests in flight go on",
    State.STOPPING: "told to end, or being killed; lasts until its last process is gone",
    State.BACKOFF: "crashed; waits before the next start",
    State.FAILED: "crashed too often, or for a cause that cannot heal by itself",
}
GENERATION = 1
TRANSIENT = Cause(CauseKind.EXITED, "ended")

Targets = dict[State, dict[EventKind, list[State]]]


def outcomes(state: State, goal: Goal, kind: EventKind) -> set[tuple[State, Goal]]:
    """What one event makes of a state, with a fresh and with a spent restart budget; empty where it is refused."""
    ends = set()
    for history in (RestartHistory(), RestartHistory(crashes_in_a_row=99, first_cause=TRANSIENT)):
        before = Replica(state, goal, GENERATION, history)
        try:
            after, _ = step(before, Event(kind, GENERATION, TRANSIENT), Context())
        except NotAllowed:
            continue
        ends.add((after.state, after.goal))
    return ends


def targets() -> Targets:
    """Where each event of each row can lead, from the goals that really occur there."""
    found: dict[State, dict[EventKind, set[State]]] = {s: {k: set() for k in row} for s, row in TABLE.items()}
    seen = {(State.STOPPED, Goal.STOP)}
    todo = list(seen)
    while todo:
        state, goal = todo.pop()
        for kind in TABLE[state]:
            ends = outcomes(state, goal, kind)
            found[state][kind] |= {s for s, _ in ends}
            todo.extend(ends - seen)
            seen |= ends
    return {
        state: {k: [s for s in State if s in ends] for k, ends in row.items()} for state, row in found.items()
    }


def diagram(found: Targets) -> list[str]:
    """A mermaid state diagram; events that change nothing are left out."""
    edges: dict[tuple[State, State], list[str]] = {}
    for state, row in found.items():
        for kind, ends in row.items():
            for end in ends:
                if end is not state:
                    edges.setdefault((state, end), []).append(kind.value)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> STOPPED"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(kinds)}" for (a, b), kinds in edges.items()]
    return [*lines, "```"]


def rows(found: Targets) -> list[str]:
    """The table: a line per state and event."""
    lines = ["| state | event | leads to |", "| --- | --- | --- |"]
    for state, row in found.items():
        for kind in sorted(row, key=lambda k: (k not in OPERATOR_EVENTS, list(EventKind).index(k))):
            ends = " or ".join(s.value for s in row[kind] if s is not state) or "stays"
            who = " (operator)" if kind in OPERATOR_EVENTS else ""
            lines.append(f"| {state.value} | {kind.value}{who} | {ends} |")
    return lines


def page() -> str:
    """The whole document."""
    found = targets()
    return "\n".join(
        [
            "# The lifecycle of a replica",
            "",
            "Written by `make docs` from the table in `daemon/gpuserved/core/replica.py`. Do not edit.",
            "",
            "| state | meaning |",
            "| --- | --- |",
            *(f"| {state.value} | {MEANING[state]} |" for state in State),
            "",
            "Where an event leads to one of several states, the replica's goal (serve, hold, restart, stop) and its restart",
            "budget decide: what is to stop ends STOPPED, what is to restart goes on to STARTING, and a crash leads to BACKOFF",
            "or, once the budget is spent or the cause cannot heal, to FAILED. An operator's event that a state does not list",
            "is refused; any other is ignored, and so is every event of an earlier generation.",
            "",
            *diagram(found),
            "",
            *rows(found),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")
