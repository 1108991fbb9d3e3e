"""Test files share `tests.planner.configs`."""

from __future__ import annotations

import sys
from pathlib import Path

# Under --import-mode=importlib the repository is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import venv
from collections.abc import Callable, Iterator

import pytest
from tests.e2e.box import REPOSITORY, Box

_MAIN = """
import pathlib, sys
if "--help=all" in sys.argv:
    sys.stdout.write(pathlib.Path({options!r}).read_text())
    raise SystemExit
from gpuserved.engines.sim.cli import main
sys.exit(main())
"""


@pytest.fixture
def vllm_stand_in(tmp_path: Path) -> str:
    """An interpreter in whose environment vLLM 0.32 seems to be installed, and the look-alike answers in its place."""
    root = tmp_path / "vllm"
    venv.create(root, with_pip=False, symlinks=True)
    site = next((root / "lib").glob("python3*")) / "site-packages"
    (site / "vllm-0.32.0.dist-info").mkdir()
    entry = site / "vllm" / "entrypoints" / "cli"
    entry.mkdir(parents=True)
    for package in (site / "vllm", site / "vllm" / "entrypoints", entry):
        (package / "__init__.py").touch()
    options = REPOSITORY / "tests" / "engines" / "data" / "vllm-0.32-options.txt"
    (entry / "main.py").write_text(_MAIN.format(options=str(options)))
    ours = [str(REPOSITORY / "daemon"), *(path for path in sys.path if path.endswith("site-packages"))]
    (site / "ours.pth").write_text("\n".join(ours))
    return str(root / "bin" / "python")


@pytest.fixture
def boxes() -> Iterator[Callable[[], Box]]:
    """Makes boxes whose daemons see the GPUs of `gpus.json` in the box's root."""
    made: list[Box] = []

    def make() -> Box:
        box = Box()
        (box.root / "gpuserved.toml").write_text(f'[gpus]\nprovider = "{box.root}/gpus.json"\n')
        made.append(box)
        return box

    try:
        yield make
    finally:
        for box in made:
            box.close()
