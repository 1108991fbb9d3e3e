"""A real systemd as PID 1 of a container, with the project's units installed as the documents say."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.box import REPOSITORY, until

BOOT = Path(__file__).with_name("boot.sh")
BOOT_S = 60.0
GPUSERVE = "/opt/gpuserve/bin/gpuserve"
PROGRAMS = ("systemd-nspawn", "unshare", "nsenter", "systemctl")


def why_not() -> str | None:
    """What this machine lacks for a container; None: nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install systemd-container)"
    trial = "t=$(mktemp -d) && mount -t tmpfs tmpfs $t && mkdir $t/u $t/w $t/r && umount -R /sys/fs/cgroup"
    trial += " && mount -t overlay overlay -o lowerdir=/,upperdir=$t/u,workdir=$t/w $t/r"
    trial += " && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", trial], capture_output=True, text=True, check=False, timeout=30
    )
    return f"mounts are not permitted here: {done.stderr.strip()}" if done.returncode else None


class Container:
    """Booted by `boot`, ended by `close`. What it changes is gone then."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="gs-systemd-"))
        self._console = (self._folder.with_suffix(".console")).open("w+", encoding="utf-8")
        self._process: subprocess.Popen[str] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Start it and wait until systemd has."""
        places = (str(self._folder), str(REPOSITORY), sys.prefix, sys.base_prefix)
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", str(BOOT), *places],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._leader = until(self._find_leader, f"PID 1; {self.console()}", BOOT_S)
        until(self._booted, "systemd has booted", BOOT_S, every_s=0.2)

    def _find_leader(self) -> int | None:
        assert self._process is not None
        assert self._process.poll() is None, self.console()
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended while they were listed
            for process in psutil.Process(self._process.pid).children(recursive=True):
                if process.name() == "systemd":
                    return process.pid
        return None

    def _booted(self) -> bool:
        return self.run("systemctl", "is-system-running", check=False).strip() in {"running", "degraded"}

    def console(self) -> str:
        """What the boot printed."""
        return Path(self._console.name).read_text("utf-8")[-2000:]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as root in the container, and do not wait for it."""
        return subprocess.Popen(self._inside(*command), text=True, stdin=subprocess.DEVNULL)

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd", *command]

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a command as root in the container; returns what it printed."""
        done = subprocess.run(
            self._inside(*command),
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr, self.journal())
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """A file in the container, with its folder."""
        self.run("bash", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"', "-", path, text)

    def journal(self) -> str:
        """The unit's last lines."""
        return self.run("journalctl", "--unit=gpuserved", "--no-pager", "--lines=40", check=False)

    def beside(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command of this machine's files on the container's network."""
        entered = ["nsenter", f"--target={self._leader}", "--net", *command]
        return subprocess.Popen(entered, text=True, cwd=REPOSITORY, **options)

    def close(self) -> None:
        """Power off."""
        if self._process is not None:
            if self._leader:
                self.run("systemctl", "poweroff", "--no-block", check=False)
            try:
                self._process.wait(BOOT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(BOOT_S)
        self._console.close()
        Path(self._console.name).unlink()
        self._folder.rmdir()
