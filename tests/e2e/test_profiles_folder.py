"""`gpuserved --profiles DIR` and a profile in it that cannot be read: the daemon serves on, and says which file it is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.box import GPUSERVED, Box, until
from tests.e2e.texts import sim

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


@contextmanager
def serving(box: Box) -> Iterator[subprocess.Popen[bytes]]:
    """`gpuserved` with the box's folder of profiles, once it answers and has looked into it."""
    with (box.top / "daemon.out").open("ab") as out:
        daemon = subprocess.Popen(
            [*GPUSERVED, "--listen", f"127.0.0.1:{box.port}", "--profiles", str(box.profiles)], env=box.env,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=box.top,
        )  # fmt: skip
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def degraded(box: Box) -> str | None:
    try:
        said: str | None = box.look()["supervisor"]["degraded"]
    except OSError:
        return None
    return said


def not_text(path: Path) -> None:
    path.write_bytes(b'model = "sim/tiny"\nserved_name = "caf\xe9"\n')


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all.toml")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"), [(not_text, "bad.toml:2: not UTF-8"), (dangling, "no such file"), (folder, "bad.toml")]
)
def test_a_profile_that_cannot_be_read_does_not_end_the_daemon(
    box: Box, spoil: Callable[[Path], None], said: str
) -> None:
    box.write("good", sim("good", replicas=1))
    spoil(box.profiles / "bad.toml")
    with serving(box) as daemon:
        until(lambda: daemon.poll() is not None or degraded(box), "it says what is wrong", 60)
        assert daemon.poll() is None, (box.top / "daemon.out").read_text(errors="replace")
        problem = degraded(box) or ""
        assert said in problem
        assert "bad.toml" in problem
        assert box.look()["replicas"] == [], "all of the folder or nothing"
        os.rename(box.profiles / "bad.toml", box.profiles / "bad.off")
        box.ok("apply", str(box.profiles / "good.toml"))
        until(lambda: degraded(box) is None, "what is wanted is applied", 60)
        assert [each["profile"] for each in box.look()["replicas"]] == ["good"]
        box.ok("down", "--yes")
