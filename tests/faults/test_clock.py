"""Row 31: the wall clock jumps. Nobody may set the clock of the machine that runs the tests, and a time namespace does not cover it.
So a real daemon reads a wall clock that a file moves; and of every other reading in the program it is looked up that it only stamps.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.e2e.box import REPOSITORY, Box, kill, until
from tests.e2e.clients import PlainLoad
from tests.e2e.texts import sim
from tests.faults.table import Measured

HOUR_S = 3600
DAEMON = """
import sys, time
real, path = time.time, sys.argv.pop(1)
def shifted():
    with open(path) as file:
        return real() + float(file.read() or 0)
time.time = shifted
from gpuserved.app.main import main
sys.exit(main())
"""
"""The daemon as it is, but for the wall clock."""

STAMPS = {
    "app/daemon.py": 1,  # when an upgrade failed
    "cli/events.py": 1, "cli/upgrade.py": 1,  # what an operator means by "10m"; since when the daemon's word is about this command
    "cli/act.py": 1, "cli/apply.py": 1, "cli/up.py": 1,  # since when events and rollouts are this command's own
    "cli/doctor/machine.py": 1,  # is about the clock
    "cli/waiting.py": 1, "cli/status.py": 1,  # ages on the screen
    "control/logfeed.py": 2, "fleet/observers.py": 1, "planning/measured.py": 1, "fleet/quarantine.py": 1,
    "fleet/rollout.py": 1, "router/builtin.py": 1, "router/exchange.py": 1, "shim/role.py": 2,
    "replica/diagnostics.py": 2,
}  # fmt: skip
"""Readings of the wall clock, by file: each is written down or shown, and decides nothing in a process that runs on."""
WAITS = {"sleep", "call_later", "call_at", "wait_for", "wait", "timeout", "timeout_at", "settimeout", "join"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    root = REPOSITORY / "daemon" / "gpuserved"
    for path in [*root.rglob("*.py"), *(REPOSITORY / "tui").rglob("*.py")]:
        inside = root in path.parents
        name = str(path.relative_to(root)) if inside else f"../../{path.relative_to(REPOSITORY)}"
        # The look-alike and the embedded server are other people's programs.
        if not name.startswith("engines/"):
            yield name, ast.parse(path.read_text("utf-8"))


def readings(tree: ast.AST) -> int:
    """Calls of `time.time`, and of `datetime.now` and its like."""
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in {"now", "utcnow", "today"}
            or ast.unparse(node.func) in {"time.time", "time.time_ns"}
        )
        and not ast.unparse(node.func).startswith("self.")
        for node in ast.walk(tree)
    )


@pytest.mark.fault(31)
def test_the_wall_clock_is_read_for_stamps_alone() -> None:
    found = Counter({name: count for name, tree in sources() if (count := readings(tree))})
    new = {name: count for name, count in found.items() if count > STAMPS.get(name, 0)}
    assert not new, (
        f"another reading of the wall clock: does it only stamp? Waits and ages use time.monotonic: {new}"
    )


@pytest.mark.fault(31)
def test_no_wait_is_computed_from_the_wall_clock() -> None:
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in WAITS:
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                assert not any(readings(value) for value in given), f"{name}:{node.lineno}"


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    clock, program = made.top / "clock", made.top / "clocked.py"
    clock.write_text("0")
    program.write_text(DAEMON)
    daemon = subprocess.Popen(
        [sys.executable, str(program), str(clock), "--listen", f"127.0.0.1:{made.port}"], env=made.env, cwd=made.top,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: made.run("status").returncode == 0, "the daemon is up", 60)
        yield made
    finally:
        try:
            made.close()
        finally:
            daemon.kill()
            daemon.wait(60)


@pytest.mark.fault(31)
def test_a_daemon_whose_clock_jumps(box: Box, measured: Measured) -> None:
    """An hour forth and back, again and again, under load, and while one replica waits out its backoff: no probe, hang, drain, backoff
    or stability timer notices, nobody else is restarted, and no request fails.
    """
    clock = box.top / "clock"
    tables = {
        "restart": {"backoff_s": 3, "jitter": 0.0},
        "health": {"interval_s": 0.3, "hang_rotation_s": 5, "hang_timeout_s": 10},
    }
    box.ok("apply", box.write("tiny", sim("tiny", replicas=3, flags={"load_s": 0.2}, tables=tables)))
    for name in ("tiny-0", "tiny-1", "tiny-2"):
        box.wait_state(name, "READY", 60)
    before = {row["id"]: row for row in box.look()["replicas"]}
    with PlainLoad(box.endpoint, "tiny") as load:
        load.reach(10)
        at = kill(before["tiny-0"]["pid"])
        box.wait_state("tiny-0", "BACKOFF", 60)
        for jump_s in (HOUR_S, 0, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S):
            clock.write_text(str(jump_s))
            time.sleep(0.4)
        box.wait_restarted(before["tiny-0"], 60)
        measured.recover_s = time.monotonic() - at
        assert measured.recover_s > 2.5, "the backoff was cut short"
        clock.write_text(str(HOUR_S))
        load.reach(20)
    assert load.failures == []
    measured.failed, measured.answered = 0, load.answered
    after = {row["id"]: row for row in box.look()["replicas"]}
    for name in ("tiny-1", "tiny-2"):
        assert (after[name]["pid"], after[name]["restarts"]) == (before[name]["pid"], 0)
    assert after["tiny-0"]["restarts"] == 1
