"""systemd's file descriptor store: a copy of the public port there keeps it open while no process of ours lives.

A stored socket comes back at the next start beside those of socket units (sd_listen_fds(3)); systemd drops it when the unit is
stopped. Names that begin with `stored` are the store's (systemd's own default is `stored`), all others those of socket units.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from gpuserved.host import listen, sdnotify

log = logging.getLogger(__name__)

NAME = "stored-port"
_OF_THE_STORE = "stored"
_FIRST_FD = 3
BARRIER_S = 5.0
"""systemd reads what it is told within milliseconds; while it reloads its units, within a second or two."""


@dataclass(frozen=True)
class Passed:
    """A descriptor that this process was started with."""

    name: str
    fd: int


def take() -> tuple[Passed, ...]:
    """What systemd passed (sd_listen_fds(3)). The variables are taken out of the environment, and no child gets the descriptors."""
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
    """The public port as systemd holds it. Lives as long as the process, and keeps its own copy of what is stored: a daemon that
    takes everything up again after a failed upgrade finds the port as the first one did.
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
            sdnotify.notify(self._notify, "FDSTORE=1", f"FDNAME={NAME}", fds=(listener.fileno(),))

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
        sdnotify.notify(self._notify, "FDSTOREREMOVE=1", f"FDNAME={name}")


def inherited() -> socket.socket | None:
    """The socket that a socket unit passed, for a program that stores none; None: there is no such unit."""
    with contextlib.closing(PortStore(None, take())) as given:
        return given.of_unit()


def _until_read(notify: str | None) -> bool:
    """Wait until systemd has read everything sent so far (sd_notify_barrier(3)): it closes the pipe it gets then."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        sdnotify.notify(notify, "BARRIER=1", fds=(theirs,))
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
