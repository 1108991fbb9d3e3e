"""sd_notify(3): the five lines of it that a daemon needs."""

from __future__ import annotations

import os
import socket


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


def notify(address: str | None, *lines: str) -> None:
    """Send `READY=1` and its like; silently nothing where systemd did not ask."""
    if not address:
        return
    where = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), where)
        except OSError:
            return  # systemd went away: nothing to tell
