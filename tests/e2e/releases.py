"""Other releases of gpuserve, to upgrade from and to: recorded wheels, and this tree once more with another version and perhaps
a fault.

A recorded wheel (tests/e2e/recorded/) is gpuserve as it was at the revision that its build tag names; scripts/record-release makes
it, the same bytes every time. It is in the repository because a test must not depend on history: a clone may be shallow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.box import GPUSERVE, REPOSITORY, Box, Json, until

import gpuserved

PACKAGE = REPOSITORY / "daemon" / "gpuserved"
RECORDED = REPOSITORY / "tests" / "e2e" / "recorded" / "gpuserve-0.1.0-226e559-py3-none-any.whl"


class Release:
    """A copy of the package that calls itself `version`."""

    def __init__(
        self, folder: Path, version: str, changes: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        """:param changes: by file of the package, a text in it and what stands there instead."""
        self.version = version
        self.path = folder / version
        # With compiled modules: they stay valid, and save seconds.
        shutil.copytree(PACKAGE, self.path / "gpuserved")
        self.change("__init__.py", f'"{gpuserved.__version__}"', f'"{version}"')
        for name, (text, instead) in (changes or {}).items():
            self.change(name, text, instead)

    @classmethod
    def installed(cls, folder: Path, version: str) -> Release:
        """One that was made before."""
        found = cls.__new__(cls)
        found.version, found.path = version, folder / version
        return found

    def install_over(self, version: str, changes: Mapping[str, tuple[str, str]]) -> None:
        """Become another version in the same place, as `pip install -U` does under a daemon that runs."""
        self.change("__init__.py", f'"{self.version}"', f'"{version}"')
        self.version = version
        for name, (text, instead) in changes.items():
            self.change(name, text, instead)

    def change(self, name: str, text: str, instead: str) -> None:
        """Replace a text that stands once in a file of the package."""
        path = self.path / "gpuserved" / name
        before = path.read_text("utf-8")
        assert before.count(text) == 1, (name, text)
        path.write_text(before.replace(text, instead), "utf-8")

    def run(self, box: Box, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """`gpuserve ARGUMENTS` of this release, for the daemon of `box`."""
        env = box.env | {"PYTHONPATH": os.pathsep.join([str(self.path), str(REPOSITORY / "tui")])}
        return subprocess.run(
            [*GPUSERVE, *arguments], env=env, text=True, cwd=box.top, timeout=timeout_s,
            capture_output=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def upgrade(self, box: Box, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`gpuserve upgrade`, which must succeed."""
        box.remember()
        done = self.run(box, "upgrade", *arguments)
        box.remember()
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{daemon_log(box)}"
        return done


class Environment:
    """A virtual environment of its own with gpuserve installed from a wheel; its dependencies are this interpreter's."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.path = folder
        venv.create(folder, symlinks=True)
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (self.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.install(wheel)

    def install(self, wheel: Path) -> None:
        """`pip install -U`, over what is there and may be running."""
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(self.path / "bin" / "python"),
                "install", "--no-index", "--no-deps", "--force-reinstall", str(wheel),
            ],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip

    def run(self, box: Box, *arguments: str, program: str = "gpuserve") -> subprocess.CompletedProcess[str]:
        """A command of this environment, for the daemon of `box`."""
        env = {key: value for key, value in box.env.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.path / "bin" / program), *arguments], env=env, text=True, cwd=box.top, timeout=120,
            capture_output=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        box.remember()
        return done

    def ok(self, box: Box, *arguments: str, program: str = "gpuserve") -> str:
        """stdout of one that must succeed."""
        done = self.run(box, *arguments, program=program)
        said = f"{program} {arguments}: rc {done.returncode}\n{done.stdout}\n{done.stderr}\n{daemon_log(box)}"
        assert done.returncode == 0, said
        return done.stdout

    def runs(self, pid: int) -> bool:
        """Whether a process was started by this environment's interpreter."""
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(bytes(self.path) + b"/")


def wheel_of_this_tree(folder: Path) -> Path:
    """What `pip install` would get from the working tree."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def daemon_log(box: Box) -> str:
    path = box.roots.log / "daemon.log"
    return path.read_text("utf-8")[-4000:] if path.exists() else ""


def routers(box: Box, *, draining: bool) -> list[Json]:
    """The router processes that take connections, or those that end."""
    found: list[Json] = box.look()["router"]["processes"]
    return [each for each in found if each["draining"] is draining]


def all_drained(box: Box, timeout_s: float = 60) -> None:
    until(lambda: not routers(box, draining=True), "the replaced routers have ended", timeout_s)


def same(box: Box, before: Json) -> None:
    """Every replica is the process it was, with the counts it had."""
    rows = {row["id"]: row for row in box.look()["replicas"]}
    for row in before["replicas"]:
        now = rows[row["id"]]
        kept = ("pid", "shim_pid", "generation", "restarts", "gpus", "started_at")
        assert {key: now[key] for key in kept} == {key: row[key] for key in kept}
