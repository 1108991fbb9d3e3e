"""One version of the daemon hands over to another.

The new one is checked while the old one serves. Then the old one lets go of everything (replicas and routers go on by themselves),
starts the new one, and stays in memory until that answers. Where it does not, the old one takes everything up again, from memory:
its code may not be on the disk any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Invalid, Refused
from gpuserved.api.roots import Roots
from gpuserved.api.types import UpgradeRequest
from gpuserved.host import systemd
from gpuserved.host.deadline import DAEMON_START_LIMIT_S, within
from gpuserved.host.failpoint import reach
from gpuserved.host.logtail import clean, written_since

log = logging.getLogger(__name__)

CHECK_LIMIT_S = 60.0
"""For the imports of the new version and a look at the files; a second on a quiet host."""
END_LIMIT_S = 10.0
_POLL_S = 0.05
_SHOWN_LINES = 5


@dataclass(frozen=True)
class Successor:
    """A daemon that may take over."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    version: str


async def check(request: UpgradeRequest, flags: Sequence[str], environ: Mapping[str, str]) -> Successor:
    """Whether the gpuserve of that interpreter runs here and can work with this configuration and state.

    :param flags: those that this daemon was started with.
    :raises Invalid: that is no interpreter.
    :raises Refused: it cannot; nothing has changed.
    """
    if not os.path.isabs(request.python) or not os.access(request.python, os.X_OK):
        raise Invalid(
            f"{request.python} is no program that this daemon may run",
            "give the absolute path of a Python interpreter",
        )
    env = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
    if request.pythonpath:
        env["PYTHONPATH"] = request.pythonpath
    command = (request.python, "-m", "gpuserved.app.main", *flags)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, "--check", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise Refused(f"{request.python} cannot be run: {error.strerror}") from None
    try:
        out, complaints = await within(process.communicate(), CHECK_LIMIT_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        raise Refused(
            f"the new version did not start within {CHECK_LIMIT_S:g} s; nothing has changed"
        ) from None
    words = out.decode(errors="replace").split()
    if process.returncode != 0 or len(words) != 2 or words[0] != "gpuserved":
        raise Refused(
            f"the new version cannot take over (exit code {process.returncode}), nothing has changed:\n{_last(complaints)}",
            f"try it: {' '.join(command)} --check",
        )
    return Successor(command, env, words[1])


def _last(complaints: bytes) -> str:
    lines = [clean(line) for line in complaints.decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_SHOWN_LINES:]) or "  it said nothing"


def hand_over(successor: Successor, roots: Roots, service: systemd.Service) -> str | None:
    """Start it and wait until it serves; this process holds nothing any more. None: it serves. Else why not, and it is gone."""
    path = roots.log / "daemon.log"
    begun_at = path.stat().st_size if path.exists() else 0
    log.info("handing over to gpuserved %s (%s)", successor.version, successor.command[0])
    hears, tells = os.pipe2(os.O_CLOEXEC)
    try:
        why = _start_and_wait(successor, roots, service, hears, tells)
    finally:
        os.close(hears)
        os.close(tells)
    if why is None:
        return None
    reach("upgrade.ended")
    said = written_since(path, begun_at)[-_SHOWN_LINES:] if service.address is None else []
    return "\n".join([why, *(f"  {line}" for line in said)])


def _start_and_wait(
    successor: Successor, roots: Roots, service: systemd.Service, hears: int, tells: int
) -> str | None:
    """:param hears: the successor's end of a pipe; `tells` is this one's, which closes when this process dies."""
    env = {**successor.env, **service.environment(hears)}
    heard = () if service.address is None else (hears,)
    try:
        process = subprocess.Popen(
            successor.command, env=env, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=heard
        )
    except OSError as error:
        return f"{successor.command[0]} cannot be run: {error.strerror}"
    reach("upgrade.launched")
    with _Signals(process.terminate):
        why = _wait(process, ControlClient(roots.control_socket), service)
        if why is None:
            reach("upgrade.answered")
            # From here on systemd watches the new one; it is in the unit's cgroup, as it must be.
            systemd.notify(service.address, f"MAINPID={process.pid}", "READY=1")
            reach("upgrade.named")
            os.write(tells, systemd.NAMED)
            process.returncode = 0  # it outlives this process: nobody here waits for it
            return None
        _end(process)
    return why


def watch(predecessor_fd: int, on_death: Callable[[], object]) -> None:
    """Call `on_death` where the daemon that this one is to replace dies before it has named this one to systemd."""
    loop = asyncio.get_running_loop()

    def heard() -> None:
        loop.remove_reader(predecessor_fd)
        said = os.read(predecessor_fd, len(systemd.NAMED))
        os.close(predecessor_fd)
        if said != systemd.NAMED:
            on_death()

    loop.add_reader(predecessor_fd, heard)


def _wait(process: subprocess.Popen[bytes], client: ControlClient, service: systemd.Service) -> str | None:
    deadline = time.monotonic() + DAEMON_START_LIMIT_S
    while True:
        ended = process.poll()
        if ended is not None:
            return f"it ended with exit code {ended}" if ended >= 0 else f"it was killed by signal {-ended}"
        try:
            if client.status().supervisor.pid == process.pid:
                return None
        except GpuserveError:
            pass
        if time.monotonic() > deadline:
            return f"it did not answer within {DAEMON_START_LIMIT_S:g} s"
        systemd.notify(service.address, "WATCHDOG=1")
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets a daemon go of everything; one that does not is killed, which does the same."""
    process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Signals:
    """While nobody serves: SIGTERM and SIGINT end both daemons, and SIGHUP nobody. Replicas and routers go on."""

    def __init__(self, end_other: Callable[[], object]) -> None:
        self._end_other = end_other

    def __enter__(self) -> None:
        self._before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._ended),
            signal.SIGINT: signal.signal(signal.SIGINT, self._ended),
            signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        }

    def _ended(self, number: int, _frame: FrameType | None) -> None:
        self._end_other()
        raise SystemExit(128 + number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
