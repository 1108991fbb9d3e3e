"""The pipe that is the replica's stdout and stderr, and its way into the log file."""

from __future__ import annotations

import errno
import fcntl
import os

from gpuserved.shim.logfile import LogFile

_PIPE_BYTES = (
    256 * 1024
)  # four times the kernel's default; a user may hold 64 MiB of pipes without privilege (pipe(7))
_F_SETPIPE_SZ = 1031  # in the fcntl module from Python 3.10 only
_READ_BYTES = 64 * 1024
_READS_AT_ONCE = 16  # then the sockets have their turn
_LAST_PUMPS = 64  # a stranger that was handed the pipe and floods it must not keep the shim
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}


class LogPipe:
    """`write_fd` goes to the child, `read_fd` to the event loop."""

    def __init__(self, log: LogFile) -> None:
        self.log = log
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_fd, False)
        try:
            fcntl.fcntl(self.write_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:  # the user's share of pipe memory is used up; the default size works too
            pass
        self.ended = False

    def open_log(self) -> None:
        """Open the file.

        :raises OSError: it cannot be had, for another reason than a full or failing disk: that must not stop a start.
        """
        try:
            self.log.open()
        except OSError as error:
            if error.errno not in _DISK_TROUBLE:
                raise

    def keep_reading_end_only(self) -> None:
        """Close our copy of the writing end, so that the end of the last writer is seen."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def pump(self) -> bool:
        """Move what is there to the file, up to a MiB. True where something was moved."""
        moved = False
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(self.read_fd, _READ_BYTES)
            except BlockingIOError:
                return moved
            if not data:
                self.ended = True
                return moved
            self.log.write(data)
            moved = True
        return moved

    def finish(self) -> None:
        """Move the rest, once nobody writes any more, and close everything."""
        self.keep_reading_end_only()
        for _ in range(_LAST_PUMPS):
            if self.ended or not self.pump():
                break
        os.close(self.read_fd)
        self.log.close()

    def discard(self) -> None:
        """Close everything; leave no empty file behind."""
        self.keep_reading_end_only()
        os.close(self.read_fd)
        self.log.discard()
