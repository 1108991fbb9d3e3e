"""Who is at the other end of a control connection, and whether they may operate."""

from __future__ import annotations

import grp
import socket
import struct
from dataclasses import dataclass

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
