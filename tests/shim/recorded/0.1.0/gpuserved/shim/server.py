"""The event loop: socket, log pipe, signals and timers of one shim, on one thread."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time

from gpuserved.shim.client import KEEPERS, Client, Gone, allowed
from gpuserved.shim.logpipe import LogPipe
from gpuserved.shim.proc import remove
from gpuserved.shim.role import Role, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

_MOST_CLIENTS = 128
_ACCEPTS_AT_ONCE = 16
_FAREWELL_S = 1.0
_LAST_TURNS = 3  # accept, read, write
_LONGEST_SLEEP_S = 60.0
_AFTER_A_BUG_S = 0.1
_WHO = KEEPERS | {"cli"}
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2,
            signal.SIGALRM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGXFSZ)  # fmt: skip


class Server:
    """Serves one role until it is finished."""

    def __init__(self, role: Role, pipe: LogPipe, listener: socket.socket) -> None:
        self.role = role
        self.pipe = pipe
        self._path: str = listener.getsockname()
        self._listener = listener
        self._clients: list[Client] = []
        self._terminated = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        role.tell = self._tell

    def catch_signals(self) -> None:
        """SIGCHLD wakes the loop, SIGTERM stops the child; nothing else sent to a shim ends it, SIGKILL aside."""
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def run(self) -> None:
        """Until the role is finished and its watchers are told."""
        self._watch(self._wake_read, self._drain_wakeups)
        self._watch(self._listener.fileno(), self._accept)
        self._watch(self.pipe.read_fd, self._pump)
        while not self.role.finished:
            try:
                self._turn()
            except Exception as error:
                # Whatever this is, ending here would kill the model (PDEATHSIG).
                self._confess(error)
                time.sleep(_AFTER_A_BUG_S)
        self._say_farewell()

    def _turn(self) -> None:
        now = time.monotonic()
        due = min([*self.role.deadlines(), now + _LONGEST_SLEEP_S])
        for key, mask in self._selector.select(max(0.0, due - now)):
            key.data(mask)
        if self._terminated:
            self._terminated = False
            self.role.stop(self.role.spec.term_grace_s)
        self.role.reap()
        if not self.role.finished:
            self.role.kept = any(client.keeps for client in self._clients)
            self.role.tick(time.monotonic())

    def _watch(self, fd: int, call: Callable[[int], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, call)

    def _drain_wakeups(self, _mask: int) -> None:
        try:
            while os.read(self._wake_read, 4096):
                continue
        except BlockingIOError:
            pass

    def _pump(self, _mask: int) -> None:
        self.pipe.pump()
        if self.pipe.ended:  # every writer closed it; the process may go on without
            self._selector.unregister(self.pipe.read_fd)

    def _accept(self, _mask: int) -> None:
        try:
            for _ in range(_ACCEPTS_AT_ONCE):
                self._admit(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError:  # out of descriptors or memory; the loop must not spin on it
            time.sleep(_AFTER_A_BUG_S)

    def _admit(self, peer: socket.socket) -> None:
        if not allowed(peer):
            peer.close()
            return
        if len(self._clients) >= _MOST_CLIENTS:
            # Connections that never said who they are make room; keepers and watchers are never pushed out.
            idle = next(
                (client for client in self._clients if not client.keeps and not client.watching), None
            )
            if idle is None:
                peer.close()
                return
            self._drop(idle)
        client = Client(peer)
        self._clients.append(client)
        self._watch(peer.fileno(), lambda mask: self._serve(client, mask))

    def _serve(self, client: Client, mask: int) -> None:
        if client not in self._clients:  # dropped earlier in the same turn
            return
        try:
            if mask & selectors.EVENT_WRITE:
                client.flush()
            if mask & selectors.EVENT_READ:
                for request in client.receive():
                    self._answer(client, request)
            self._set_interest(client)
        except Gone:
            self._drop(client)

    def _answer(self, client: Client, request: dict[str, Any]) -> None:
        op = request.get("op")
        if op == "hello":
            who = request.get("who")
            if not isinstance(who, str) or who not in _WHO:
                client.send(refusal("who: supervisor, router or cli is needed"))
                return
            client.who = who
            client.send(self.role.describe(self.pipe.log.dropped_bytes))
        elif op == "watch":
            client.watching = True
            client.send({"ok": True})
            if not self.role.running and self.role.exit is not None:
                client.send({"event": "dying", "exit": self.role.exit})
            if self.role.finished:
                client.send({"event": "exited", "exit": self.role.exit})
        elif op == "listen_fd" and self.role.spec.listen_fd is not None:
            client.send({"ok": True}, self.role.spec.listen_fd)
        else:
            client.send(self.role.obey(request))

    def _set_interest(self, client: Client) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.waiting else 0)
        key = self._selector.get_key(client.socket)
        if key.events != wanted:
            self._selector.modify(client.socket, wanted, key.data)

    def _drop(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.socket)
            client.socket.close()

    def _tell(self, event: dict[str, Any]) -> None:
        for client in [client for client in self._clients if client.watching]:
            try:
                client.send(event)
                self._set_interest(client)
            except Gone:
                self._drop(client)

    def _say_farewell(self) -> None:
        """Remove the socket, answer who has asked already, give slow watchers a moment for their last event, close all."""
        remove(self._path)
        for _ in range(_LAST_TURNS):
            for key, mask in self._selector.select(0):
                key.data(mask)
        self._listener.close()
        until = time.monotonic() + _FAREWELL_S
        while any(client.waiting for client in self._clients) and time.monotonic() < until:
            for client in [client for client in self._clients if client.waiting]:
                try:
                    client.flush()
                except Gone:
                    self._drop(client)
            time.sleep(0.01)
        for client in list(self._clients):
            self._drop(client)

    def _confess(self, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
        with contextlib.suppress(Exception):
            self.pipe.log.note(f"the shim met a bug at {where}: {type(error).__name__}: {error}")
