"""From the launcher's process to a shim that nobody is the parent of."""

from __future__ import annotations

import os
import socket

from gpuserved.shim.logfile import LogFile
from gpuserved.shim.logpipe import LogPipe
from gpuserved.shim.proc import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    close_inherited,
    lock_folder,
    prctl,
    remove,
    write_all,
)
from gpuserved.shim.replica import Replica
from gpuserved.shim.router_role import Router
from gpuserved.shim.server import Server
from gpuserved.shim.spawn import StartFailed
from gpuserved.shim.spec import MAX_SPEC_BYTES, Spec, SpecError, parse
from gpuserved.shim.wire import encode

_BACKLOG = 256


def main() -> int:
    """Read the spec, become nobody's child, run. The answer goes to stdout as one line."""
    try:
        spec = parse(_read_spec())
    except SpecError as error:
        _answer({"ok": False, "errno": None, "error": f"bad spec: {error}"})
        return 2
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return 0
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        _live(spec)
    except BaseException as error:
        _answer({"ok": False, "errno": None, "error": f"the shim failed: {type(error).__name__}: {error}"})
        os._exit(1)
    os._exit(0)


def _read_spec() -> bytes:
    data = b""
    while more := os.read(0, 65536):
        data += more
        if len(data) > MAX_SPEC_BYTES:
            raise SpecError(f"longer than {MAX_SPEC_BYTES} bytes")
    return data


def _answer(message: dict[str, object]) -> None:
    try:
        write_all(1, encode(message))
    except OSError:  # the launcher is gone; whoever comes next finds the socket
        pass


def _detach_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd, inheritable=False)
    os.close(null)


def _live(spec: Spec) -> None:
    umask = os.umask(0o077)
    os.chdir("/")
    close_inherited(spec.listen_fd)
    prctl(PR_SET_NAME, b"gpuserve-shim")
    try:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        server = _set_up(spec, umask)
    except StartFailed as error:
        _answer({"ok": False, "errno": error.number, "error": str(error)})
        return
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
        _answer({"ok": False, "errno": error.errno, "error": what})
        return
    _answer({"ok": True, "shim_pid": os.getpid(), "pid": server.role.pid})
    _detach_stdio()
    server.run()


def _socket_path(spec: Spec) -> str:
    return f"{spec.dir}/shim.sock"


def _set_up(spec: Spec, umask: int) -> Server:
    """Everything up to the running child, or nothing.

    :raises StartFailed: the child does not run.
    :raises OSError: folder, socket, log or identity cannot be made.
    """
    if spec.listen_fd is not None:
        os.set_inheritable(spec.listen_fd, False)
    lock_folder(spec.dir)  # held until this process ends
    remove(_socket_path(spec))  # left by a shim that was killed: its lock was free
    listener = _listen(_socket_path(spec))
    pipe = LogPipe(LogFile(spec.log_path, spec.log_max_bytes, spec.log_keep))
    role = (Replica if spec.role == "replica" else Router)(spec, pipe, umask)
    server = Server(role, pipe, listener)
    server.catch_signals()
    try:
        pipe.open_log()
        role.start()
    except BaseException:
        role.discard()
        pipe.discard()
        remove(_socket_path(spec))
        raise
    if spec.role == "replica":
        pipe.keep_reading_end_only()
    return server


def _listen(path: str) -> socket.socket:
    """A socket that only this user can open, from its first moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.umask(before)
    return listener
