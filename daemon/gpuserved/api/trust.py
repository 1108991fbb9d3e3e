"""Whether a client may believe the daemon at a socket: what it sends there (profiles, and the tokens in them) is for that daemon alone.

A socket's path is derived from the user and the configuration, so anybody who can write to one of its folders, /tmp above all, could have
put a socket of his own there first. The kernel says who listens, and the folders say who could have put the socket there.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

from gpuserved.api.errors import Denied

_UCRED = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7))."""


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """PID, uid and gid of the process at the other end of a Unix connection; of a listener, as it was when it began to listen.

    :raises OSError: the peer is gone already.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def expect_trusted(path: Path, peer: int, *, uid: int) -> None:
    """Pass where the daemon is this user's own, root's, or that of a user whose socket nobody else could have put there.

    :param path: of the socket.
    :param peer: the user who listens.
    :param uid: the client's user.
    :raises Denied: it may be anybody's.
    """
    if peer in {uid, 0}:
        return
    folder = Path(os.path.realpath(path.parent))
    if os.stat(folder).st_uid == peer and not any(_planted(each, uid) for each in (folder, *folder.parents)):
        return
    raise Denied(
        f"{path} belongs to another user (uid {peer}), who may have put it there for you to find; nothing was sent",
        "name the daemon's own socket with --socket, or set another GPUSERVE_ROOT",
    )


def _planted(folder: Path, uid: int) -> bool:
    """True where a folder that neither root nor this user owns stands in one that everybody may write to."""
    above = os.stat(folder.parent)
    return (
        folder.parent != folder
        and bool(above.st_mode & stat.S_IWOTH)
        and os.stat(folder).st_uid not in {uid, 0}
    )
