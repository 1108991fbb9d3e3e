"""What a daemon and systemd tell each other: sd_notify(3), the watchdog, and the public port in its file descriptor store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from gpuserved.host import listen

log = logging.getLogger(__name__)

NAMED = b"."
_PREDECESSOR = "GPUSERVE_PREDECESSOR_FD"
NAME = "stored-port"
_OF_THE_STORE = "stored"
_FIRST_FD = 3
BARRIER_S = 5.0
"""systemd reads what it is told within milliseconds; while it reloads its units, within a second or two."""


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


@dataclass(frozen=True)
class Passed:
    """A descriptor that this process was started with."""

    name: str
    fd: int


def passed_descriptors() -> tuple[Passed, ...]:
    """What systemd passed at the start (sd_listen_fds(3)). The variables are taken out of the environment, and no child gets the descriptors."""
    count = os.environ.pop("LISTEN_FDS", "0")
    pid = os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return ()
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    return tuple(Passed(names[at] if at < len(names) else "unknown", fd) for at, fd in enumerate(fds))


class PortStore:
    """The public port as systemd holds it, in its file descriptor store: it stays open there while no process of ours lives.

    A stored socket comes back at the next start beside those of socket units; systemd drops it when the unit is stopped. Names that
    begin with `stored` are the store's (systemd's own default is `stored`), all others those of socket units. This object lives as
    long as the process, and keeps its own copy of what is stored: a daemon that takes everything up again after a failed upgrade
    finds the port as the first one did.
    """

    def __init__(self, notify: str | None, passed: Sequence[Passed] = ()) -> None:
        """:param notify: address of the notify socket; None: there is no systemd, and nothing is stored."""
        self._notify = notify
        self._unit: socket.socket | None = None
        """A socket unit's: systemd holds it by itself."""
        self._stored: list[socket.socket] = []
        self._unknown: set[str] = set()
        """Names in the store that this version has not given."""
        for each in passed:
            self._sort(each)

    def _sort(self, passed: Passed) -> None:
        found = _listening(passed.fd)
        if passed.name == NAME and found is not None:
            self._stored.append(found)
        elif found is not None and self._unit is None and not passed.name.startswith(_OF_THE_STORE):
            self._unit = found
        else:
            log.warning("systemd passed a descriptor that is not used here: %s", passed.name)
            if found is not None:
                found.close()
            self._unknown.add(passed.name)

    def of_unit(self) -> socket.socket | None:
        """A copy of the socket that a socket unit holds for us; None: there is no such unit."""
        return None if self._unit is None else self._unit.dup()

    async def take_back(self, address: str) -> socket.socket | None:
        """A copy of the stored socket. None: none listens at `address`, and none is stored any more.

        :raises Invalid: this is no address of this machine.
        """
        wanted = listen.resolve(address)
        if len(self._stored) == 1 and listen.is_at(self._stored[0], wanted):
            log.info("the public port comes back from systemd's store: %s", listen.url_of(self._stored[0]))
            return self._stored[0].dup()
        for stored in self._stored:
            where = listen.url_of(stored)
            log.warning("systemd's store holds %s, and %s is asked for: that one goes", where, address)
        await self.drop()
        return None

    async def hold(self, listener: socket.socket) -> None:
        """Let the store hold this socket, or nothing where a socket unit holds it, and in any case nothing else."""
        if self._notify is None:
            return
        of_unit = self._unit is not None and _same(self._unit, listener)
        held = len(self._stored) == 1 and _same(self._stored[0], listener) and NAME not in self._unknown
        for name in sorted(self._unknown):
            self._remove(name)
        self._unknown.clear()
        if held and not of_unit:
            return
        await self.drop()
        if not of_unit:
            self._stored.append(listener.dup())
            notify(self._notify, "FDSTORE=1", f"FDNAME={NAME}", fds=(listener.fileno(),))

    async def drop(self) -> None:
        """Nothing of ours is stored any more, also in systemd: where nobody else holds the port, it is free."""
        if not self._stored:
            return
        for stored in self._stored:
            stored.close()
        self._stored.clear()
        self._remove(NAME)
        if not await asyncio.to_thread(_until_read, self._notify):
            log.warning("systemd has not said within %g s that it let go of the port", BARRIER_S)

    def close(self) -> None:
        """Close our copies; systemd keeps its own."""
        for each in (*self._stored, *([] if self._unit is None else [self._unit])):
            each.close()

    def _remove(self, name: str) -> None:
        notify(self._notify, "FDSTOREREMOVE=1", f"FDNAME={name}")


def inherited() -> socket.socket | None:
    """The socket that a socket unit passed, for a program that stores none; None: there is no such unit."""
    with contextlib.closing(PortStore(None, passed_descriptors())) as given:
        return given.of_unit()


def _until_read(address: str | None) -> bool:
    """Wait until systemd has read everything sent so far (sd_notify_barrier(3)): it closes the pipe it gets then."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        notify(address, "BARRIER=1", fds=(theirs,))
        os.close(theirs)
        waiting = select.poll()
        waiting.register(ours, 0)  # a hang-up is always told
        return bool(waiting.poll(BARRIER_S * 1000))
    finally:
        os.close(ours)


def _listening(fd: int) -> socket.socket | None:
    """The TCP socket that listens there; None, and the descriptor is closed, where it is anything else."""
    try:
        found = socket.socket(fileno=fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(fd)
        return None
    of_tcp = found.family in {socket.AF_INET, socket.AF_INET6} and found.type == socket.SOCK_STREAM
    if not of_tcp or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        return None
    found.setblocking(False)
    return found


def _same(one: socket.socket, other: socket.socket) -> bool:
    """Are these two descriptors of one socket?"""
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
