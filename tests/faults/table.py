"""The fault table: its rows, what the tests of each row measured, and how that is printed.

A test belongs to row N through `@pytest.mark.fault(N)`. What it measures it hands to the fixture `measured`. With
GPUSERVE_FAULTS_REPORT=FILE every such test adds a line to FILE, and `python -m tests.faults.table FILE` prints the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS: Mapping[int, tuple[str, str]] = {
    1: ("kill -9 of the API process", "out of rotation within 1 s, tree swept, restarted; no unstarted request fails"),
    2: ("kill -9 of EngineCore", "as row 1; the reason names the engine"),
    3: ("kill -9 of a tensor-parallel worker", "as row 1; the whole tree goes, not the worker alone"),
    4: ("SIGSTOP of the API process", "out of rotation by failed probes, killed, restarted"),
    5: ("SIGSTOP of EngineCore while /health stays 200", "found by its step counter, killed, restarted"),
    6: ("a child that escapes by setsid and double fork", "swept with the tree"),
    7: ("the port or socket of a replica is taken", "another one is used, or the holder is named; no crash loop"),
    8: ("a stranger answers at the replica's address", "never routed to: sockets live in a private folder"),
    9: ("accepts requests, never answers", "out of rotation, and requests go elsewhere"),
    10: ("broken HTTP from the replica", "502 before the first byte, an abort after it; the connection is not used again"),
    11: ("useless /metrics", "bounded read; unknown is shown as unknown; traffic goes on"),
    12: ("disk full under the logs", "the replica never blocks; what is dropped is counted"),
    13: ("disk full under the state", "`degraded` in status; no start that cannot be recorded; old state intact"),
    14: ("state damaged, truncated, newer, or a link", "set aside and rebuilt from the shims; nothing is killed"),
    15: ("a GPU is lost", "its row says LOST, the others keep their figures"),
    16: ("Xid errors", "application errors restart, hardware errors quarantine"),
    17: ("no NVML, or one that hangs", "the daemon starts and serves; the reason is shown"),
    18: ("slow heads and bodies by the thousand", "408 at the deadline; others are not held up"),
    19: ("a client leaves in mid-stream", "its place is free within 1 s; not counted against the replica"),
    20: ("ten thousand connections", "over the cap 503; the control socket and others go on"),
    21: ("huge, lying or endless bodies", "413 or 400 without keeping the bytes"),
    22: ("hostile JSON", "400; the loop is not held up"),
    23: ("request smuggling", "refused, and never reaches a replica"),
    24: ("other users on the control socket", "refused by mode and by peer credentials"),
    25: ("garbage and silence on the control socket", "costs that client its connection, and nobody else"),
    26: ("kill -9 of the supervisor under load, then a new one", "no request fails; same PIDs, counts kept"),
    27: ("kill -9 of the supervisor at every step", "never two replicas on a lease, never an unknown one"),
    28: ("kill -9 of the supervisor, for good", "traffic goes on; nothing stops while a router lives"),
    29: ("kill -9 of a router", "only its own requests; the URL is back within 1 s"),
    30: ("kill -9 of a shim", "its replica dies with it, the rest is swept; restarted"),
    31: ("the wall clock jumps", "no timer notices"),
    32: ("out of file descriptors", "accepting pauses, running streams go on"),
    33: ("out of memory", "told apart from other kills"),
    34: ("a program that cannot be started", "the reason is the system's own words; nothing half-made"),
    35: ("zombies and reused PIDs", "none left; a reused PID is never signalled"),
    36: ("reload with a broken file", "refused with file and line; what ran goes on"),
    37: ("a storm of commands on one replica", "one after the other; the last one wins"),
    38: ("the supervisor hangs", "the watchdog replaces it; requests and streams go on"),
    39: ("a start that takes long, and one that stalls", "the first is waited for, the second fails with its last lines"),
    40: ("every replica fails", "requests wait in a bounded queue; recovery needs nobody"),
    41: ("an SDK's retries during a crash", "no amplification"),
    42: ("the engine's environment is replaced under running replicas", "they go on; the next start uses the new one"),
    43: ("a poison request among 255 neighbours", "the neighbours survive; it is blocked"),
    44: ("the host restarts with eight replicas", "all READY again"),
    45: ("upgrade of daemon and routers, and one that fails", "no request fails, no stream is cut; same PIDs, counts kept"),
}  # fmt: skip


@dataclass
class Measured:
    """What one test saw. None: not a question of this test."""

    failed: int | None = None
    """Requests that were refused or broken without an error event, though they had not begun."""
    told: int | None = None
    """Begun streams that ended with an error event."""
    answered: int | None = None
    detect_s: float | None = None
    """From the fault until the replica was out of rotation."""
    recover_s: float | None = None
    """From the fault until full capacity."""
    left: int | None = None
    """Processes and shared memory files left behind."""


@dataclass
class Line:
    """One row of the printed table."""

    outcomes: set[str] = field(default_factory=set)
    tests: int = 0
    seen: list[dict[str, float | None]] = field(default_factory=list)

    def worst(self, name: str) -> str:
        """The largest of the figures."""
        values = [value for each in self.seen if (value := each.get(name)) is not None]
        return f"{max(values):.2f}".rstrip("0").rstrip(".") if values else ""


def lines_of(report: Sequence[Mapping[str, Any]]) -> dict[int, Line]:
    """The report's lines, by row."""
    rows = {number: Line() for number in ROWS}
    for entry in report:
        for number in entry["rows"]:
            row = rows[number]
            row.tests += 1
            row.outcomes.add(entry["outcome"])
            row.seen.append(entry["measured"])
    return rows


def render(rows: Mapping[int, Line]) -> str:
    """Markdown. A row without a test says so."""
    out = [
        "| # | fault | what must hold | tests | result | failed | told | detect s | recover s | left |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, (fault, must) in ROWS.items():
        row = rows[number]
        result = "no test yet" if not row.tests else ", ".join(sorted(row.outcomes))
        figures = [row.worst(name) for name in ("failed", "told", "detect_s", "recover_s", "left")]
        out.append("| " + " | ".join([str(number), fault, must, str(row.tests), result, *figures]) + " |")
    return "\n".join(out) + "\n"


def main() -> int:
    """Print the table; 1 where a test failed."""
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        rows = lines_of([json.loads(line) for line in file])
    print(render(rows), end="")
    bad = [number for number, row in rows.items() if row.outcomes - {"passed"}]
    if bad:
        print(f"\nnot green: rows {', '.join(map(str, bad))}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
