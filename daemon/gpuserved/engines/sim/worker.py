"""`VLLM::Worker_TPn`: does its share of each step, which here is to answer one byte with one byte."""

from __future__ import annotations

import signal
import socket

from gpuserved.engines.sim.logs import Log
from gpuserved.engines.sim.processes import set_comm


def main(fd: int) -> None:
    """Serve the EngineCore at the other end of `fd`; its death is this process's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    peer = socket.socket(fileno=fd)
    rank = int.from_bytes(peer.recv(2), "big")
    title = f"Worker_TP{rank}"
    set_comm("VLLM::" + title)
    log = Log(title)
    try:
        while data := peer.recv(1):
            peer.sendall(data)
    except ConnectionError:
        pass  # the same end
    log.say("multiproc_executor.py:843", "Parent process exited, terminating worker queues")


class WorkerDied(Exception):
    """A worker is gone; the message is its name."""


class Workers:
    """The workers of one engine, seen from EngineCore."""

    def __init__(self, count: int) -> None:
        from gpuserved.engines.sim.processes import spawn

        self.processes = []
        self.sockets: list[socket.socket] = []
        for rank in range(count):
            ours, theirs = socket.socketpair()
            title = f"VLLM::Worker_TP{rank}"
            fds = (theirs.fileno(),)
            self.processes.append(
                spawn(title, "gpuserved.engines.sim.worker", fds=fds, argument=theirs.fileno())
            )
            theirs.close()
            ours.sendall(rank.to_bytes(2, "big"))
            self.sockets.append(ours)

    def step(self) -> None:
        """One round with all workers: it waits for the slowest, for ever where one has stopped.

        :raises WorkerDied: one is gone.
        """
        for rank, peer in enumerate(self.sockets):
            try:
                peer.sendall(b".")
            except OSError:
                raise WorkerDied(f"VllmWorker-{rank}") from None
        for rank, peer in enumerate(self.sockets):
            try:
                answer = peer.recv(1)
            except OSError:
                answer = b""
            if not answer:
                raise WorkerDied(f"VllmWorker-{rank}")

    def name_of(self, peer: object) -> str:
        """The worker at the other end of a socket that said something out of turn, which can only be its end."""
        return f"VllmWorker-{self.sockets.index(peer)}" if isinstance(peer, socket.socket) else "VllmWorker"
