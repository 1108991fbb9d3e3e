"""sd_notify(3): what a daemon needs of it."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

NAMED = b"."
_PREDECESSOR = "GPUSERVE_PREDECESSOR_FD"


@dataclass(frozen=True)
class Service:
    """What systemd told this process. Take it once: the variables are gone then."""

    address: str | None
    """Of the notify socket; None: not under systemd."""
    ping_s: float | None
    """Between two pings of the watchdog; None: there is none."""

    predecessor_fd: int | None = None
    """Of a daemon that this one is to replace: says `NAMED` once systemd knows this one as the main process, and ends with that daemon.
    None: systemd started this one.
    """

    @classmethod
    def take(cls) -> Service:
        """From the environment."""
        fd = os.environ.pop(_PREDECESSOR, "")
        if not fd.isdigit():
            return cls(take_socket(), watchdog_interval_s())
        os.set_inheritable(int(fd), False)
        return cls(take_socket(), watchdog_interval_s(), int(fd))

    def environment(self, predecessor_fd: int) -> dict[str, str]:
        """The variables anew, for a process that becomes the service's main one; none where there is no service."""
        if self.address is None:
            return {}
        told = {"NOTIFY_SOCKET": self.address, _PREDECESSOR: str(predecessor_fd)}
        return told if self.ping_s is None else told | {"WATCHDOG_USEC": str(round(self.ping_s * 4e6))}


def take_socket() -> str | None:
    """The notify socket's address, taken out of the environment so that no child inherits it."""
    return os.environ.pop("NOTIFY_SOCKET", None)


def watchdog_interval_s() -> float | None:
    """Seconds between two pings: a quarter of what systemd allows, so that one late answer of a busy host is not taken for a hang;
    None: no watchdog.
    """
    usec = os.environ.pop("WATCHDOG_USEC", None)
    pid = os.environ.pop("WATCHDOG_PID", None)
    if not usec or not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 4e6


def notify(address: str | None, *lines: str, fds: Sequence[int] = ()) -> None:
    """Send `READY=1` and its like, perhaps with descriptors; silently nothing where systemd did not ask."""
    if not address:
        return
    where = "\0" + address[1:] if address.startswith("@") else address
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendmsg(["\n".join(lines).encode()], rights, 0, where)
        except OSError:
            return  # systemd went away: nothing to tell
