"""Fork and exec of the one child, with every failure told to the parent as an errno and a sentence."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from gpuserved.shim.proc import PR_SET_PDEATHSIG, prctl, read_small, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LISTEN_FD = 3
_OUT_OF_THE_WAY = 10  # descriptors move here before 0 to 3 are set
_MESSAGE_BYTES = 4096


class StartFailed(Exception):
    """The child does not run; `number` is an errno or None."""

    def __init__(self, number: int | None, message: str) -> None:
        super().__init__(message)
        self.number = number


class Child:
    """What to run. `umask` is what the shim was started with, not its own."""

    __slots__ = ("argv", "cgroup", "cwd", "env", "listen_fd", "output_fd", "umask")

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, output_fd: int, umask: int) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.output_fd = output_fd
        self.umask = umask
        self.listen_fd: int | None = None
        self.cgroup: str | None = None


def spawn(child: Child) -> int:
    """The pid of the running program.

    It leads its own session, dies with this process (PDEATHSIG), has default signals and no descriptors but 0, 1, 2 and, where
    given, the listening socket as 3.

    :raises StartFailed: nothing runs.
    """
    shim = os.getpid()
    told, tell = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        os.close(told)
        os.close(tell)
        raise StartFailed(error.errno, f"cannot fork: {os.strerror(error.errno or 0)}") from None
    if pid == 0:
        _become(child, shim, tell)
    os.close(tell)
    message = b""
    while data := os.read(told, _MESSAGE_BYTES):
        message += data
    os.close(told)
    if not message:
        return pid
    os.waitpid(pid, 0)
    number, _, sentence = message.decode(errors="replace").partition("\n")
    raise StartFailed(int(number) if number else None, sentence)


def _become(child: Child, shim: int, tell: int) -> NoReturn:
    """In the forked process: set the stage and exec, or tell why not and end."""
    step = "prepare the process"
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != shim:
            os._exit(127)
        tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
        _set_descriptors(child)
        _reset_signals()
        _reset_oom_score()
        if child.cgroup is not None:
            step = f"enter the cgroup {child.cgroup}"
            _write_file(f"{child.cgroup}/cgroup.procs", b"0")
        step = f"enter the folder {child.cwd}"
        os.chdir(child.cwd)
        os.umask(child.umask)
        step = f"run {child.argv[0]}"
        _exec(child)
    except OSError as error:
        _say(tell, f"{error.errno or ''}\ncannot {step}: {os.strerror(error.errno or 0)}")
    except BaseException as error:
        _say(tell, f"\ncannot {step}: {type(error).__name__}: {error}")
    os._exit(127)


def _say(tell: int, message: str) -> None:
    try:
        write_all(tell, message.encode(errors="replace")[:_MESSAGE_BYTES])
    except OSError:
        pass


def _set_descriptors(child: Child) -> None:
    output = fcntl.fcntl(child.output_fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    null = fcntl.fcntl(
        os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY
    )
    if child.listen_fd is not None:
        listen = fcntl.fcntl(child.listen_fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
        os.dup2(listen, LISTEN_FD, inheritable=True)
    os.dup2(null, 0, inheritable=True)
    os.dup2(output, 1, inheritable=True)
    os.dup2(output, 2, inheritable=True)


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):  # kept by the C library
                pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reset_oom_score() -> None:
    """A protected shim must not protect the model it runs: the kernel would kill the daemon instead."""
    try:
        if int(read_small("/proc/self/oom_score_adj")) < 0:
            _write_file("/proc/self/oom_score_adj", b"0")
    except (OSError, ValueError):
        pass


def _write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def _exec(child: Child) -> None:
    """Execute along the child's own PATH.

    :raises OSError: always; the most telling of the errors met.
    """
    program = child.argv[0]
    if "/" in program:
        os.execve(program, child.argv, child.env)  # noqa: S606 - a list, and no shell
    worst = FileNotFoundError(errno.ENOENT, "")
    denied: OSError | None = None
    for folder in child.env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(f"{folder or '.'}/{program}", child.argv, child.env)  # noqa: S606 - as above
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
    raise denied or worst
