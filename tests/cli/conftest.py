"""The commands as an operator types them: processes of their own, on a root of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.box import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Shell:
    """One GPUSERVE_ROOT."""

    root: Path
    port: int

    @property
    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        return kept | {
            "HOME": str(self.root),
            "GPUSERVE_ROOT": str(self.root),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("daemon", "tui")),
        }

    def __call__(
        self, *arguments: str, timeout_s: float = 100, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`gpuserve ARGUMENTS`."""
        return subprocess.run(
            self.argv(*arguments), env=self.env | env, cwd=self.root, text=True, capture_output=True,
            timeout=timeout_s, check=False, input=stdin or "",
        )  # fmt: skip

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*arguments), env=self.env, cwd=self.root, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gpuserved.cli.main", *arguments]

    def profile(self, name: str, text: str) -> str:
        path = self.root / f"{name}.toml"
        path.write_text(text, "utf-8")
        return str(path)

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`up`, on this root's port."""
        return self("up", *arguments, "--port", str(self.port), "--wait", "60", timeout_s=100)

    def close(self) -> None:
        """`down`, then nothing that names this root may run."""
        done = self("down", "--yes", timeout_s=120)
        deadline = time.monotonic() + 60
        while (left := _running(str(self.root))) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)
        assert done.returncode in {0, 3}, done.stderr
        assert not left, f"left behind: {left}"


def _running(root: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"GPUSERVE_ROOT={root}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def make_shell() -> Shell:
    return Shell(Path(tempfile.mkdtemp(prefix="gsl-")), free_port())


@pytest.fixture
def shell() -> Iterator[Shell]:
    """Nothing runs yet."""
    made = make_shell()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Shell]:
    """A real daemon with two look-alike replicas, for tests that leave them as they are."""
    made = make_shell()
    try:
        made.profile(
            "demo",
            'model = "sim/demo"\nserved_name = "demo-model"\nengine = "sim"\nreplicas = 2\nmax_model_len = 4096\n',
        )
        done = made.up("demo.toml")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield made
    finally:
        made.close()
