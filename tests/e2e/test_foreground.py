"""A daemon in the foreground refuses to be upgraded: what it says, that nothing changes, and that its advice holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.e2e.box import GPUSERVED, REPOSITORY, Box, Json, until
from tests.e2e.clients import PlainLoad
from tests.e2e.releases import Release
from tests.e2e.texts import sim

pytestmark = pytest.mark.timeout(600)


@contextmanager
def foreground(box: Box, pythonpath: str = str(REPOSITORY / "daemon")) -> Iterator[subprocess.Popen[bytes]]:
    """`gpuserved` as a terminal or another process manager runs it."""
    with (box.top / "daemon.out").open("ab") as out:
        daemon = subprocess.Popen(
            [*GPUSERVED, "--listen", f"127.0.0.1:{box.port}"], env=box.env | {"PYTHONPATH": pythonpath},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=box.top,
        )  # fmt: skip
    try:
        until(lambda: daemon.poll() is not None or answers(box), "it answers", 60)
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def answers(box: Box) -> bool:
    try:
        return bool(box.look())
    except OSError:
        return False


def unchanged(now: Json, before: Json) -> bool:
    """Processes, versions, counts; and no upgrade is said to have failed, for none was tried."""
    parts = [
        (
            each["generation"], each["version"], each["supervisor"]["pid"], each["supervisor"]["failed_upgrade"],
            each["router"]["pids"], [(row["id"], row["pid"], row["restarts"]) for row in each["replicas"]],
        )
        for each in (now, before)
    ]  # fmt: skip
    return parts[0] == parts[1] and before["supervisor"]["failed_upgrade"] is None


def test_an_upgrade_of_a_foreground_daemon_is_refused_and_its_advice_holds() -> None:
    box = Box()
    try:
        newer = Release(box.top, "8.0.0")
        with foreground(box) as daemon:
            box.ok("up", box.write("tiny", sim("tiny", replicas=2)))
            box.remember()
            before = box.look()
            assert before["supervisor"]["pid"] == daemon.pid
            done = newer.run(box, "upgrade")
            assert done.returncode == 4
            assert "runs in the foreground: nobody would wait for the one that takes its place" in done.stderr
            assert "end it with SIGTERM, replicas and routers go on, and start the new version" in done.stderr
            refusal = json.loads(newer.run(box, "upgrade", "--json").stdout)
            assert refusal["code"] == "refused"
            assert refusal["hint"].startswith("end it with SIGTERM")
            assert unchanged(box.look(), before)
            assert daemon.poll() is None
            with ExitStack() as stack:
                with PlainLoad(box.endpoint, "tiny") as load:
                    daemon.send_signal(signal.SIGTERM)
                    assert daemon.wait(60) == 0
                    load.reach(10)
                    path = os.pathsep.join([str(newer.path), str(REPOSITORY / "tui")])
                    stack.enter_context(foreground(box, path))
                    after = box.look()
                    load.reach(10)
                assert after["version"] == "8.0.0"
                rows = [[(row["id"], row["pid"]) for row in each["replicas"]] for each in (before, after)]
                assert rows[0] == rows[1]
                box.down()
    finally:
        box.close()
