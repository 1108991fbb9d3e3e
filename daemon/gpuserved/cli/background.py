"""Starting a daemon in the background and waiting until it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import CLASSES, GpuserveError, Internal, TimedOut, Unavailable
from gpuserved.api.roots import Roots, make_private
from gpuserved.host.deadline import DAEMON_START_LIMIT_S
from gpuserved.host.logtail import written_since

_POLL_S = 0.05


@dataclass(frozen=True)
class Started:
    """A daemon that answers."""

    client: ControlClient
    ours: bool
    """False where another `up` was faster."""


def start_daemon(roots: Roots, flags: Sequence[str]) -> Started:
    """Start `gpuserved` with its output in daemon.log, detached from this terminal.

    :param flags: passed on.
    :raises GpuserveError: it ended; of the class its exit code stands for, with the last lines it wrote.
    """
    make_private(roots.log)
    path = roots.log / "daemon.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        begun_at = os.fstat(fd).st_size
        process = subprocess.Popen(
            [sys.executable, "-m", "gpuserved.app.main", "--background", *flags],
            stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True,
            cwd="/", env=_environment(),
        )  # fmt: skip
    finally:
        os.close(fd)
    client = ControlClient(roots.control_socket)
    deadline = time.monotonic() + DAEMON_START_LIMIT_S
    while True:
        ended = process.poll()
        if _answers(client):
            return Started(client, ended is None)
        if ended is not None:
            raise _failure(ended, path, begun_at)
        if time.monotonic() > deadline:
            raise TimedOut(
                f"the daemon (PID {process.pid}) does not answer after {DAEMON_START_LIMIT_S:g} s",
                f"see {path}",
            )
        time.sleep(_POLL_S)


def _environment() -> dict[str, str]:
    """Ours, with module folders that still mean the same in another working folder."""
    env = dict(os.environ)
    if env.get("PYTHONPATH"):
        env["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(part) for part in env["PYTHONPATH"].split(os.pathsep) if part
        )
    if env.get("GPUSERVE_ROOT"):
        env["GPUSERVE_ROOT"] = os.path.abspath(os.path.expanduser(env["GPUSERVE_ROOT"]))
    return env


def _answers(client: ControlClient) -> bool:
    try:
        client.version()
    except (Unavailable, TimedOut):
        return False
    return True


def _failure(code: int, path: Path, begun_at: int) -> GpuserveError:
    kind = next((each for each in CLASSES.values() if each.exit_code == code and code > 1), Internal)
    lines = written_since(path, begun_at)
    said = "".join(f"\n  {line}" for line in lines)
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    return kind(f"the daemon did not start ({how}){':' if said else ''}{said}", f"its log: {path}")
