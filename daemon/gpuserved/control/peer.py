"""Who may reach the control socket, who is at its other end, and whether they may operate."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.trust import credentials
from gpuserved.api.wire import OPERATE_GROUP

_SO_PEERGROUPS = 59
"""Linux 4.13: the peer's supplementary groups at the time it connected; asm-generic/socket.h."""
_GROUPS_MAX = 256
"""The socket module reads at most 1024 bytes of an option."""


@dataclass(frozen=True)
class Peer:
    """A client, as the kernel vouches for it."""

    pid: int
    uid: int
    groups: frozenset[int]


def identify(connection: socket.socket) -> Peer:
    """The peer of a Unix connection.

    :raises OSError: it is gone already.
    """
    pid, uid, gid = credentials(connection)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:  # an old kernel, or a peer in more groups than fit: its primary group still counts
        groups = b""
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(groups) // 4}I", groups)}))


def operate_gid() -> int | None:
    """The group whose members operate a system daemon; None where the host has no such group."""
    try:
        return grp.getgrnam(OPERATE_GROUP).gr_gid
    except KeyError:
        return None


def may_operate(peer: Peer, *, owner_uid: int, operators: int | None) -> bool:
    """The daemon's own user, root and the operate group; everybody else reads.

    :param operators: the operate group of a system daemon; None: there is none.
    """
    return peer.uid in {owner_uid, 0} or (operators is not None and operators in peer.groups)


def bind(path: Path, *, operators: int | None) -> socket.socket:
    """A Unix socket that nobody else can reach from its first moment: the umask is set before bind, and until it listens, which is
    the caller's next step, the kernel refuses every connection.

    :param operators: the group that may connect (0660) and enter the folder (0750); None: its owner alone (0600). So it is, too,
        where this process may not give the socket to that group: an unprivileged daemon outside it.
    """
    shared = operators is not None and (os.geteuid() == 0 or operators in {os.getegid(), *os.getgroups()})
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o117 if shared else 0o177)
    try:
        bound.bind(os.fspath(path))
        if operators is not None and shared:
            os.chown(path, -1, operators, follow_symlinks=False)
            _let_in(path.parent, operators)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(previous)
    bound.setblocking(False)
    return bound


def _let_in(folder: Path, group: int) -> None:
    """The group may enter, as RuntimeDirectoryMode= of the unit has it; what else is there has modes of its own."""
    found = os.stat(folder)
    if found.st_uid == os.geteuid() and (found.st_gid, found.st_mode & 0o050) != (group, 0o050):
        os.chown(folder, -1, group)
        os.chmod(folder, stat.S_IMODE(found.st_mode) | 0o050)  # noqa: S103 - the group, and nobody else
