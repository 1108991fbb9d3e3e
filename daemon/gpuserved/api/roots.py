"""Where everything lives. One place decides it, for daemon and clients alike.

`GPUSERVE_ROOT=DIR` puts all under DIR. Without it: root and a systemd unit use the system folders, anybody else the
XDG ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Invalid

SUN_PATH_MAX = 107
"""Longest path of a Unix socket on Linux: sun_path holds 108 bytes with its NUL (unix(7))."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LONGEST_INSIDE = len("/r/0123456789ab/engine.sock")


@dataclass(frozen=True)
class Roots:
    """The folders of one daemon."""

    run: Path
    state: Path
    log: Path
    cache: Path
    config: Path
    system: bool = False
    """A daemon of the host, which the operate group may use; not one user's."""

    @property
    def control_socket(self) -> Path:
        """The control API."""
        return self.run / "control.sock"


def private_run_dir(wanted: Path) -> Path:
    """A short folder that stands in for `wanted`, whose sockets' paths would not fit; the same for every caller."""
    name = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"gpuserve-{os.getuid()}-{name}"


def fitting(run: Path) -> Path:
    """`run`, or its stand-in where socket paths would pass 107 bytes."""
    return run if len(os.fsencode(run)) + _LONGEST_INSIDE <= SUN_PATH_MAX else private_run_dir(run)


def make_private(folder: Path) -> None:
    """Create `folder` as ours alone, whatever the umask is; one that others may write to is closed to them.

    :raises Invalid: where it exists and is not a folder of ours.
    """
    for above in reversed(folder.parents):
        _make(above, 0o755)
    _make(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Invalid(
            f"{folder} is not a folder of this user", hint="remove it, or choose another GPUSERVE_ROOT"
        )
    if found.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def _make(folder: Path, mode: int) -> None:
    """A umask of 000 must not leave a new folder open to everybody: mkdir gives at most `mode`."""
    if not folder.exists():
        with contextlib.suppress(FileExistsError):  # somebody was faster, or it is a link that leads nowhere
            folder.mkdir(mode=mode)


def from_environment(env: Mapping[str, str], *, uid: int) -> Roots:
    """The folders for a daemon of `uid` started with `env`."""
    root = env.get("GPUSERVE_ROOT")
    if root:
        top = Path(root).expanduser().absolute()
        return Roots(fitting(top / "run"), top / "state", top / "log", top / "cache", top)
    if uid == 0 or "RUNTIME_DIRECTORY" in env:  # systemd sets it for a unit, whatever user that runs as
        users = env.get("XDG_RUNTIME_DIR") and env.get("RUNTIME_DIRECTORY", "").startswith(
            env["XDG_RUNTIME_DIR"]
        )
        return Roots(
            Path(env.get("RUNTIME_DIRECTORY", "/run/gpuserve")), Path(env.get("STATE_DIRECTORY", "/var/lib/gpuserve")),
            Path(env.get("LOGS_DIRECTORY", "/var/log/gpuserve")), Path(env.get("CACHE_DIRECTORY", "/var/cache/gpuserve")),
            Path(env.get("CONFIGURATION_DIRECTORY", "/etc/gpuserve")), system=not users,
        )  # fmt: skip
    home = Path(env.get("HOME", "/"))
    state = Path(env.get("XDG_STATE_HOME", home / ".local" / "state")) / "gpuserve"
    run = Path(env["XDG_RUNTIME_DIR"]) / "gpuserve" if env.get("XDG_RUNTIME_DIR") else state / "run"
    cache = Path(env.get("XDG_CACHE_HOME", home / ".cache")) / "gpuserve"
    config = Path(env.get("XDG_CONFIG_HOME", home / ".config")) / "gpuserve"
    return Roots(fitting(run), state, state / "log", cache, config)


def candidate_sockets(env: Mapping[str, str], *, uid: int, explicit: str | None = None) -> list[Path]:
    """Where a client looks for the daemon, in order: flag, GPUSERVE_SOCKET, GPUSERVE_ROOT, XDG, system."""
    if explicit:
        return [Path(explicit)]
    if env.get("GPUSERVE_SOCKET"):
        return [Path(env["GPUSERVE_SOCKET"])]
    if env.get("GPUSERVE_ROOT"):
        return [from_environment(env, uid=uid).control_socket]
    user = from_environment(env, uid=uid or 1).control_socket
    return list(dict.fromkeys([user, Path("/run/gpuserve/control.sock")]))


def find_socket(env: Mapping[str, str], explicit: str | None = None) -> Path:
    """The first place that has a socket, in the order of `candidate_sockets`; the first place where none has."""
    candidates = candidate_sockets(env, uid=os.getuid(), explicit=explicit)
    return next((path for path in candidates if _is_there(path)), candidates[0])


def _is_there(socket: Path) -> bool:
    """A socket, or a folder that this user may not look into: connecting says then who may."""
    try:
        return socket.is_socket()
    except PermissionError:
        return True
