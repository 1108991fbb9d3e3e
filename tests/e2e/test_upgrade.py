"""Another version takes over daemon and routers under load: no request fails, no stream is cut, no replica notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.box import REPOSITORY, Box, kill, until
from tests.e2e.clients import PlainLoad, Stream, Streams, open_streams
from tests.e2e.releases import Release, all_drained, routers, same
from tests.e2e.texts import sim
from tests.faults.table import Measured

import gpuserved

pytestmark = pytest.mark.timeout(600)
ENDLESS_TOKENS = 3000
"""Five minutes at 100 ms a token: longer than any upgrade, on any machine. Their clients leave in the end."""
SHORT_TOKENS = 40
"""Four seconds: begun before the hand-over, ended after it, and read to the end."""
OLD_SHIM = REPOSITORY / "tests" / "shim" / "recorded" / "0.1.0" / "gpuserved" / "shim" / "__main__.py"


def profile(step_ms: int) -> str:
    return sim("tiny", flags={"step_ms": step_ms, "load_s": 1.0}, tables={"limits": {"drain_s": 60}})


@pytest.fixture(scope="module")
def served() -> Iterator[Box]:
    """A box whose tests upgrade it in turn. What runs at first has the recorded shim of 0.1.0, under replicas and routers; the
    routers are two, so that a replacement is one of several.
    """
    box = Box()
    try:
        (box.root / "gpuserved.toml").write_text("[router]\nrouters = 2\n")
        program = 'PROGRAM = Path(gpuserved.__file__).parent / "shim" / "__main__.py"'
        old = Release(
            box.top, "6.0.0", {"host/shimclient.py": (program, f"PROGRAM = Path({str(OLD_SHIM)!r})")}
        )
        path = box.write("tiny", profile(100))
        done = old.run(box, "up", path, "--listen", f"127.0.0.1:{box.port}")
        assert done.returncode == 0, done.stderr
        box.remember()
        for row in box.look()["replicas"]:
            assert str(OLD_SHIM).encode() in Path(f"/proc/{row['shim_pid']}/cmdline").read_bytes()
        yield box
    finally:
        box.close()


def begun(box: Box, count: int, tokens: int) -> Streams:
    streams = open_streams(box.endpoint, "tiny", count, tokens)
    streams.wait_begun()
    return streams


def broken(streams: Streams) -> list[Stream]:
    """Of streams that are read to their end."""
    return [stream for stream in streams.join() if not stream.whole]


@pytest.mark.fault(45)
def test_two_upgrades_in_a_row_under_load(served: Box, measured: Measured) -> None:
    before = served.look()
    with PlainLoad(served.endpoint, "tiny") as load:
        endless, short = begun(served, 4, ENDLESS_TOKENS), begun(served, 4, SHORT_TOKENS)
        first = Release(served.top, "7.0.1")
        told = first.upgrade(served).stderr
        assert f"6.0.0, PID {before['supervisor']['pid']}" in told
        assert "2 of 2 replicas adopted" in told
        assert {each["version"] for each in routers(served, draining=False)} == {"7.0.1"}
        endless.flow()
        assert broken(short) == []
        second, short = Release(served.top, "7.0.2"), begun(served, 4, SHORT_TOKENS)
        second.upgrade(served)
        assert sum(each["in_flight"] for each in routers(served, draining=True)) >= 4, "the streams are held"
        shown = served.ok("status")
        assert "was replaced and ends after its last request" in shown
        assert "versions: daemon 7.0.2; routers 7.0.2 (2); shims 6.0.0 (2)" in shown
        endless.flow()
        assert broken(short) == []
        load.reach(10)
    measured.failed, measured.answered = len(load.failures), load.answered
    after = served.look()
    assert after["version"] == "7.0.2"
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert not set(after["router"]["pids"]) & set(before["router"]["pids"])
    same(served, before)
    endless.leave()
    all_drained(served)
    assert (served.look()["router"]["requests_total"] or 0) >= load.answered
    assert "nothing to upgrade" in second.run(served, "upgrade").stdout


@pytest.mark.fault(45)
def test_a_version_that_does_not_come_up_is_rolled_back(served: Box) -> None:
    """It passes the check and dies once it has the lock. It was installed over the running one, whose code is not on the disk any
    more: that one takes everything up again from memory.
    """
    before = served.look()
    bad = Release.installed(served.top, before["version"])
    bad.install_over(
        "7.1.0",
        {
            "fleet/recovery.py": (
                "        saved, problem =",
                "        raise MemoryError('no room')\n        saved, problem =",
            )
        },
    )
    with PlainLoad(served.endpoint, "tiny") as load:
        streams = begun(served, 4, SHORT_TOKENS)
        done = bad.run(served, "upgrade")
        assert done.returncode == 1, done.stderr
        assert "gpuserve 7.1.0 did not take over" in done.stderr
        assert "MemoryError: no room" in done.stderr
        load.reach(10)
        assert broken(streams) == []
    after = served.look()
    assert (after["version"], after["supervisor"]["pid"]) == (before["version"], before["supervisor"]["pid"])
    assert after["router"]["pids"] == before["router"]["pids"]
    assert "7.1.0" in after["supervisor"]["failed_upgrade"]["version"]
    assert "the upgrade to 7.1.0 failed" in served.ok("status")
    same(served, before)
    # And it is a whole daemon again: it can change things, and be upgraded.
    served.ok("drain", "tiny-0")
    served.ok("undrain", "tiny-0")


def test_a_version_that_cannot_work_here_is_refused_before_anything_changes(served: Box) -> None:
    before = served.look()
    newer = Release(served.top, "7.1.1", {"config/daemon.py": ('Key("insecure", ', 'Key("insecurely", ')})
    (served.root / "gpuserved.toml").write_text("[router]\nrouters = 2\ninsecure = false\n")
    done = newer.run(served, "upgrade", "--json")
    assert done.returncode == 4
    refusal = json.loads(done.stdout)
    assert "nothing has changed" in refusal["message"]
    assert "gpuserved.toml:3" in refusal["message"]
    after = served.look()
    assert after["supervisor"]["pid"] == before["supervisor"]["pid"]
    assert after["supervisor"]["failed_upgrade"] == before["supervisor"]["failed_upgrade"]
    shown = newer.run(served, "upgrade", "--dry-run")
    assert shown.returncode == 0
    rows = {line.split("  ")[0]: line for line in shown.stdout.splitlines()}
    assert rows["daemon"].split()[-3:] == ["7.0.2", "7.1.1", "replaced"]
    assert rows["router 1"].split()[-3:] == ["7.0.2", "7.1.1", "replaced"]
    assert rows["tiny-0, shim"].endswith("6.0.0    7.1.1      stays until its replica's next start")
    told = json.loads(newer.run(served, "version", "--json").stdout)
    assert (told["version"], told["daemon"]) == ("7.1.1", "7.0.2")
    assert {each["process"] for each in told["processes"]} >= {
        "daemon",
        "router 0",
        "router 1, shim",
        "tiny-1, shim",
    }


def test_routers_that_do_not_come_up_leave_those_that_serve(served: Box) -> None:
    before = served.look()
    bad = Release(
        served.top,
        "7.1.2",
        {"router/main.py": ("    wanted = _arguments(", "    sys.exit(9)\n    wanted = _arguments(")},
    )
    with PlainLoad(served.endpoint, "tiny") as load:
        done = bad.run(served, "upgrade")
        assert done.returncode == 1, done.stderr
        assert "those from before go on: a new router does not stay up: it ended" in done.stderr
        load.reach(10)
    after = served.look()
    assert after["version"] == "7.1.2"
    assert after["router"]["pids"] == before["router"]["pids"]
    assert len(after["router"]["processes"]) == 2
    same(served, before)


def test_an_upgrade_in_the_middle_of_a_rolling_change(served: Box) -> None:
    """The replica that is starting goes on starting, and the change goes on to the next one."""
    before = {row["id"]: row for row in served.look()["replicas"]}
    with PlainLoad(served.endpoint, "tiny") as load:
        served.ok("apply", "--no-wait", served.write("tiny", profile(99)))

        def starting() -> bool:
            return any(row["state"] == "STARTING" and row["pid"] for row in served.look()["replicas"])

        until(starting, "a replica starts", 60)
        Release(served.top, "7.2.0").upgrade(served)
        outcome = until(lambda: served.look()["rollouts"][0]["outcome"], "the change ends", 60)
        load.reach(10)
    assert outcome == "done"
    for row in served.look()["replicas"]:
        assert (row["generation"], row["restarts"]) == (before[row["id"]]["generation"] + 1, 0)
    assert {each["version"] for each in routers(served, draining=False)} == {"7.2.0"}


def test_replaced_routers_count_for_the_next_supervisor_and_its_down(served: Box) -> None:
    streams = begun(served, 4, ENDLESS_TOKENS)
    Release(served.top, "7.3.0").upgrade(served)
    kill(served.look()["supervisor"]["pid"])
    served.ok(
        "up", "--wait", "0"
    )  # the tree's own version: the routers are replaced once more, without a command

    def replaced_again() -> bool:
        serving = routers(served, draining=False)
        return all(each["version"] == gpuserved.__version__ for each in serving)

    until(replaced_again, "a daemon that starts replaces routers of another version", 60)
    until(lambda: _held(served) == 4, "the streams of routers two generations back are counted", 60)

    def drains() -> bool:
        rows = served.look()["replicas"]
        held = [row["in_flight"] for row in rows if row["state"] == "DRAINING"]
        return bool(sum(held) == 4)

    with served.popen("down", "--yes") as down:
        until(drains, "`down` waits for requests of replaced routers", 60)
        streams.flow()
        streams.leave()
        assert down.wait(60) == 0
    until(lambda: not served.alive(), "everything gone", 60)
    assert [p for p in served.roots.run.rglob("*") if p.is_socket()] == []
    assert list(served.roots.run.glob("router.*")) == []


def _held(box: Box) -> int:
    return sum(each["in_flight"] or 0 for each in routers(box, draining=True))
