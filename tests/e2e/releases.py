"""Other releases of gpuserve, to upgrade to: this tree once more, with another version and perhaps a fault."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.box import GPUSERVE, REPOSITORY, Box, Json, until

import gpuserved

PACKAGE = REPOSITORY / "daemon" / "gpuserved"


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
