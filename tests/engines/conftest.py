"""Profiles, launch contexts and real engine processes for the adapters' tests."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuserved.core.profile import EngineName, Profile
from gpuserved.engines.base import Launch, LaunchContext

DATA = Path(__file__).with_name("data")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


class Running:
    """One engine process, and how to talk to it."""

    def __init__(self, launch: Launch, log: Path) -> None:
        self.path = launch.address.removeprefix("unix:")
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                launch.argv, env=launch.env, cwd=launch.cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        connection = UnixConnection(self.path)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def wait_ready(self, within_s: float = 100.0) -> None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            assert self.process.poll() is None, "\n".join(self.lines())
            try:
                if self.call("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        pytest.fail("not ready: " + "\n".join(self.lines()))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short private folder: sockets' paths must fit."""
    made = Path(tempfile.mkdtemp(prefix="gs-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def profile() -> Callable[..., Profile]:
    def make(**fields: Any) -> Profile:
        return replace(
            Profile(name="p", model="owner/model", served_name="m", engine=EngineName.VLLM), **fields
        )

    return make


@pytest.fixture
def context(folder: Path) -> Callable[..., LaunchContext]:
    def make(profile: Profile, **fields: Any) -> LaunchContext:
        run_dir = folder / "run"
        run_dir.mkdir(mode=0o700, exist_ok=True)
        plain = LaunchContext(profile, "p-0", 3, "abcdef012345", run_dir, folder / "cache")
        return replace(plain, **fields)

    return make


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[[Launch], Running]]:
    """Starts engine processes and ends them with the test."""
    started: list[Running] = []

    def start(launch: Launch) -> Running:
        started.append(Running(launch, folder / f"{len(started)}.log"))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def vllm_log() -> Callable[[str], list[str]]:
    """The lines of one section of what vLLM 0.32 really wrote."""
    text = (DATA / "vllm-0.32-log.txt").read_text()
    sections = dict(part.split("\n", 1) for part in re.split(r"^##### ", text, flags=re.MULTILINE)[1:])

    def of(section: str) -> list[str]:
        return [line for line in sections[section].splitlines() if not line.startswith("--- ")]

    return of


@pytest.fixture
def vllm_options() -> str:
    """The option lines of `vllm serve --help=all`, vLLM 0.32."""
    return (DATA / "vllm-0.32-options.txt").read_text()


@pytest.fixture
def vllm_environment(folder: Path) -> Callable[..., str]:
    """A folder that looks like an environment with vLLM in it; answers its interpreter.

    The interpreter is a real one whose site folder holds a distribution's metadata and, as vLLM's entry point, a
    program that prints the given help. Nothing of vLLM itself is needed to learn flags from help.
    """

    def make(version: str = "0.32.0", help_text: str = "", distribution: str = "vllm") -> str:
        import venv

        root = folder / "venv"
        venv.create(root, with_pip=False, symlinks=True)
        site = next((root / "lib").glob("python3*")) / "site-packages"
        (site / f"{distribution.replace('-', '_')}-{version}.dist-info").mkdir()
        entry = site / "vllm" / "entrypoints" / "cli"
        entry.mkdir(parents=True)
        for package in (site / "vllm", site / "vllm" / "entrypoints", entry):
            (package / "__init__.py").touch()
        (site / "help.txt").write_text(help_text)
        (entry / "main.py").write_text(
            "import pathlib, sys\n"
            "asked = pathlib.Path(__file__).parents[3] / 'asked'\n"
            "asked.write_text(asked.read_text() + 'x' if asked.exists() else 'x')\n"
            "sys.stdout.write(pathlib.Path(__file__).parents[3].joinpath('help.txt').read_text())\n"
        )
        return str(root / "bin" / "python")

    return make
