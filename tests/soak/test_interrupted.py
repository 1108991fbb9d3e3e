"""Ctrl-C and `kill` of the long runs leave no process and no folder behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.e2e.box import REPOSITORY, tail, until
from tests.failpoints.daemon import argv_of, belongs, pids

pytestmark = pytest.mark.timeout(240)


def engines(folder: Path) -> int:
    """API processes of replicas there."""
    found = [pid for pid in pids() if belongs(pid, os.fsencode(folder))]
    return sum("gpuserved.engines.sim" in argv_of(pid) for pid in found)


@pytest.mark.parametrize(
    ("command", "number", "engines_first"),
    [
        (("tests.failpoints", "--runs", "6", "--jobs", "2"), signal.SIGINT, 3),
        (("tests.soak.fleet", "--seconds", "600", "--clients", "4"), signal.SIGTERM, 5),
    ],
)
def test_a_signal_ends_what_a_long_run_has_started(
    command: tuple[str, ...], number: signal.Signals, engines_first: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="gsi-") as top:
        folder = Path(top) / "t"
        folder.mkdir()
        with (Path(top) / "out").open("wb") as out:
            run = subprocess.Popen(
                [sys.executable, "-m", *command], env=os.environ | {"TMPDIR": str(folder)}, cwd=REPOSITORY,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            until(lambda: engines(folder) >= engines_first or run.poll() is not None, "it is on its way", 90)
            run.send_signal(number)
            assert run.wait(90) == 128 + number, tail(Path(top) / "out")
            assert [argv_of(pid) for pid in pids() if belongs(pid, os.fsencode(folder))] == []
            assert list(folder.iterdir()) == []
            assert f"{number.name}: ending what was started" in tail(Path(top) / "out", 400)
        finally:
            run.kill()
            run.wait(10)
            for pid in pids():
                if belongs(pid, os.fsencode(folder)):
                    os.kill(pid, signal.SIGKILL)
