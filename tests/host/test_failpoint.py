"""Failpoints: a closed list, errors that name the nearest, and a process that dies at the step it was told."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.host.failpoint import POINTS, SHIM_POINTS, VARIABLE, arm_from

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "daemon" / "gpuserved"


def reached(path: Path) -> list[str]:
    """The names in every `reach("...")` of a file."""
    return [
        str(call.args[0].value)
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and (getattr(call.func, "id", None) or getattr(call.func, "attr", None)) == "reach"
        and isinstance(call.args[0], ast.Constant)
    ]


def test_every_step_of_the_list_is_one_place_in_the_code_and_every_place_is_in_the_list() -> None:
    used = [name for path in sorted(PACKAGE.rglob("*.py")) for name in reached(path)]
    assert sorted(used) == sorted({**POINTS, **SHIM_POINTS})
    of_shims = [name for path in (PACKAGE / "shim").glob("*.py") for name in reached(path)]
    assert sorted(of_shims) == sorted(SHIM_POINTS)


def test_every_step_is_documented() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    missing = [
        name for name, what in {**POINTS, **SHIM_POINTS}.items() if f"| `{name}` | {what} |" not in page
    ]
    assert not missing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spawn.forkd", "did you mean spawn.forked?"),
        ("rotate.rename@2", "did you mean rotate.renamed?"),
        ("save.done@0", "NAME@N"),
        ("save.done@x", "NAME@N"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_starts(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        arm_from({VARIABLE: text})
    assert said in (refused.value.hint or "")
    done = subprocess.run(
        [sys.executable, "-m", "gpuserved.app.main"], capture_output=True, text=True, timeout=60, check=False,
        env={VARIABLE: text, "GPUSERVE_ROOT": str(tmp_path / "root"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("text", "lines"), [("save.done", 0), ("save.done@3", 2), ("serve.locked, save.done@2", 1)]
)
def test_the_process_dies_at_the_nth_time(text: str, lines: int) -> None:
    program = (
        "import os; from gpuserved.host.failpoint import arm_from, reach\narm_from(os.environ)\n"
        "for n in range(5):\n    reach('save.opened'); reach('save.done'); print(n, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False,
        env={VARIABLE: text, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.splitlines()) == lines
