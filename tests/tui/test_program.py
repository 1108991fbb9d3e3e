"""`gpuserve-tui` as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuserve_tui.main", *args],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip


def test_without_a_terminal_it_says_what_to_use() -> None:
    done = run()
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
    assert "gpuserve status" in done.stderr


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = run("--socket", str(tmp_path / "no.sock"), "--screenshot", str(tmp_path / "x.svg"))
    assert done.returncode == 3
    assert "no daemon listens at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.svg").exists()


def test_help_shows_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "gpuserve-tui --socket" in done.stdout


def test_a_wrong_setting_is_named_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "tui.toml"
    config.write_text('[keys]\nstopp = "k"\n')
    done = run("--config", str(config), "--screenshot", str(tmp_path / "x.svg"))
    assert done.returncode == 2
    assert f"{config}: keys.stopp: there is no such action" in done.stderr
    assert "did you mean stop?" in done.stderr
