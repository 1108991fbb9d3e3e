"""Leases of GPUs between real processes, of two users where the tests run as root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuserved.api.errors import Refused
from gpuserved.host.gpulock import GpuHeld, GpuLocks, release

REPOSITORY = Path(__file__).resolve().parents[2]
OTHER = """
import os, sys
from pathlib import Path
from gpuserved.host.gpulock import GpuHeld, GpuLocks
if os.getuid() == 0:
    os.setuid(65534)
try:
    GpuLocks(Path(sys.argv[1]), "/run/other").take(["GPU-a"], float(sys.argv[2]), "theirs-0", "nobody")
except GpuHeld as error:
    print("held", error.message, flush=True)
else:
    print("taken", flush=True)
sys.stdin.read()
"""


class Other:
    """Another daemon's process, of another user where that is possible."""

    def __init__(self, folder: Path, fraction: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder), str(fraction)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={"PYTHONPATH": str(REPOSITORY / "daemon"), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    """As /dev/shm is: everybody's, and sticky."""
    import shutil
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="gsl-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def others(folder: Path) -> Iterator[list[Other]]:
    made: list[Other] = []
    yield made
    for one in made:
        one.end()


def test_a_gpu_that_another_daemon_leased_is_refused_and_its_holder_named(
    folder: Path, others: list[Other]
) -> None:
    others.append(Other(folder, 1.0))
    assert others[0].said == "taken"
    mine = GpuLocks(folder, "/run/mine")
    with pytest.raises(GpuHeld, match="GPU-a is leased by theirs-0 of nobody; 0 % of it is free, and 50 %"):
        mine.take(["GPU-b", "GPU-a"], 0.5, "ours-0", "me")
    assert [(held.fraction, held.holder) for held in mine.held_by_others("GPU-a")] == [
        (1.0, "theirs-0 of nobody")
    ]
    assert mine.held_by_others("GPU-b") == [], "nothing is kept of a lease that was refused"
    others[0].end()
    release(mine.take(["GPU-a"], 1.0, "ours-0", "me"))


def test_the_other_way_round(folder: Path, others: list[Other]) -> None:
    mine = GpuLocks(folder, "/run/mine")
    fds = mine.take(["GPU-a"], 0.7, "ours-0", "me")
    others.append(Other(folder, 0.4))
    assert "held GPU GPU-a is leased by ours-0 of me; 30 % of it is free" in others[0].said
    others.append(Other(folder, 0.3))
    assert others[1].said == "taken"
    assert mine.held_by_others("GPU-a")[0].fraction == pytest.approx(0.3)
    release(fds)


def test_shares_never_add_up_to_more_than_a_gpu_however_many_ask_at_once(
    folder: Path, others: list[Other]
) -> None:
    others.extend(Other(folder, 1 / 3) for _ in range(5))
    assert sorted(one.said.split()[0] for one in others) == ["held", "held", "taken", "taken", "taken"]


def test_free_parts_need_not_lie_together(folder: Path) -> None:
    locks = GpuLocks(folder, "/run/mine")
    quarters = [locks.take(["GPU-a"], 0.25, f"r-{n}", "me") for n in range(4)]
    release(quarters[0])
    release(quarters[2])
    half = locks.take(["GPU-a"], 0.5, "wide-0", "me")
    with pytest.raises(GpuHeld):
        locks.take(["GPU-a"], 0.01, "late-0", "me")
    release([*quarters[1], *quarters[3], *half])


def test_a_lease_lives_as_long_as_the_last_process_that_holds_it(folder: Path) -> None:
    locks = GpuLocks(folder, "/run/mine")
    fds = locks.take(["GPU-a"], 1.0, "r-0", "me")
    keeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=fds
    )
    release(fds)
    with pytest.raises(GpuHeld):
        locks.take(["GPU-a"], 1.0, "r-0", "me")
    keeper.kill()
    keeper.communicate()
    release(locks.take(["GPU-a"], 1.0, "r-0", "me"))


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder", "pipe"])
def test_a_trap_in_the_folder_is_not_followed(folder: Path, kind: str) -> None:
    path, aim = folder / "gpuserve-GPU-a.lock", folder / "aim"
    aim.write_text("precious")
    if kind == "symlink":
        path.symlink_to(aim)
    elif kind == "hardlink":
        os.link(aim, path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(Refused, match=r"gpuserve-GPU-a\.lock"):
        GpuLocks(folder, "/run/mine").take(["GPU-a"], 1.0, "r-0", "me")
    assert aim.read_text() == "precious"


def test_what_others_write_cannot_drive_a_terminal(folder: Path) -> None:
    hostile = GpuLocks(folder, "/run/other")
    fds = hostile.take(["GPU-a"], 1.0, "\x1b[31mred", "evil\x07")
    seen = GpuLocks(folder, "/run/mine").held_by_others("GPU-a")[0].holder
    assert "\x1b" not in seen
    assert "\x07" not in seen
    release(fds)
