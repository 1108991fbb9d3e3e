"""The processes of one replica: children under vLLM's titles, and the socket between API server and EngineCore.

A title is the whole command line, as setproctitle leaves it: the interpreter gets the title as its only argument and reads its
program from a pipe. The children are stdlib only, so that eight replicas start within seconds on two cores. On the socket there is
one JSON object a line, both ways.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
"""The folder that holds `gpuserved`."""


def spawn(title: str, module: str, *, fds: tuple[int, ...], argument: int) -> subprocess.Popen[bytes]:
    """Start `module.main(argument)` as a process called `title`.

    :param fds: descriptors the child keeps.
    """
    env = dict(os.environ)
    # argv[0] no longer says where the interpreter lives, so it is told.
    env["PYTHONHOME"] = f"{sys.base_prefix}:{sys.base_exec_prefix}"
    env["PYTHONPATH"] = PACKAGE_ROOT
    env["PYTHONNOUSERSITE"] = "1"
    child = subprocess.Popen(
        [title],
        executable=os.readlink("/proc/self/exe"),
        stdin=subprocess.PIPE,
        pass_fds=fds,
        env=env,
        close_fds=True,
    )
    program = f"from {module} import main\nmain({argument})\n"
    assert child.stdin is not None
    try:
        child.stdin.write(program.encode())
        child.stdin.close()
    except BrokenPipeError:
        pass  # it is gone already; whoever waits for it will see
    return child


def set_comm(title: str) -> None:
    """The short name of this process, as `ps -o comm` shows it; the kernel keeps 15 bytes."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(title[:15])
    except OSError:
        pass  # cosmetic


def escape() -> None:
    """Leave a child behind that no process group or session reaches: double fork and setsid."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, 256)
    os.execv("/bin/sleep", ["sim-escaped-child", "86400"])  # noqa: S606 - no shell is wanted


Message = dict[str, Any]


def pack(message: Message) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]


def receive(peer: socket.socket, lines: Lines) -> list[Message] | None:
    """Block until something arrives; None once the other side is gone."""
    while True:
        try:
            data = peer.recv(1 << 16)
        except (ConnectionError, OSError):
            return None
        if not data:
            return None
        messages = lines.feed(data)
        if messages:
            return messages
