"""`VLLM::EngineCore`: makes the tokens, one step at a time, in a process of its own.

It reads requests from its socket between steps and sleeps without a timer while it has none. It does not notice the API server's
death (vLLM has no death pipe in that direction): killed with -9, the API server leaves it and its workers behind.
"""

from __future__ import annotations

import mmap
import os
import random
import secrets
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from gpuserved.engines.sim import processes
from gpuserved.engines.sim.faults import Faults
from gpuserved.engines.sim.flags import Options
from gpuserved.engines.sim.load import Loading
from gpuserved.engines.sim.logs import Log
from gpuserved.engines.sim.processes import escape, set_comm
from gpuserved.engines.sim.scheduler import EngineRequest, Scheduler, Step
from gpuserved.engines.sim.worker import WorkerDied, Workers

TITLE = "VLLM::EngineCore"
CRASH = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
_STEP_FRAMES = (
    ("v1/engine/core.py:1496", "run_engine_core", "engine_core.run_busy_loop()"),
    ("v1/engine/core.py:1606", "_process_engine_step", "outputs, model_executed = self.step_fn()"),
    ("v1/engine/core.py:674", "step", "model_output = future.result()"),
)


def main(fd: int) -> None:
    """Run on the socket `fd`, whose first message holds the options."""
    set_comm(TITLE)
    peer = socket.socket(fileno=fd)
    lines = processes.Lines()
    messages = processes.receive(peer, lines)
    if not messages:
        return
    raw = messages.pop(0)
    options = Options(**{**raw, "faults": Faults(**raw["faults"])})
    core = EngineCore(options, peer, lines)
    core.prepare()
    for message in messages:
        core.obey(message)
    core.run()


class EngineCore:
    """The engine's process."""

    def __init__(self, options: Options, peer: socket.socket, lines: processes.Lines) -> None:
        self._options = options
        self._log = Log("EngineCore")
        self._peer: socket.socket | None = peer
        self._lines = lines
        self._scheduler = Scheduler(
            options.kv_cache_tokens, options.max_num_seqs, options.max_num_batched_tokens
        )
        self._workers: Workers | None = None
        self._poison: set[str] = set()
        self._hang: set[str] = set()
        self._stop_by: float | None = None
        """Once SIGTERM came: when to go even with requests left."""
        self._ready_at = 0.0
        self._next_step_at = 0.0
        self._wake, wake_up = socket.socketpair()
        self._wake.setblocking(False)
        wake_up.setblocking(False)
        self._wake_up = wake_up
        self._leaked: list[mmap.mmap] = []

    def prepare(self) -> None:
        """Load, and tell the API server."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._options.faults.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._options.faults.escape_child:
            escape()
        if self._options.faults.shm_leak:
            self._leak()
        if self._options.tensor_parallel_size > 1:
            self._workers = Workers(self._options.tensor_parallel_size)
        Loading(self._options, self._log).run()
        if not self._options.faults.ignore_sigterm:
            signal.set_wakeup_fd(self._wake_up.fileno())
            signal.signal(signal.SIGTERM, self._on_sigterm)
        self._ready_at = time.monotonic()
        self._send({"op": "ready"})

    def run(self) -> None:
        """Step while there is work, wait while there is none."""
        while True:
            self._read(block=not self._scheduler.busy and self._stop_by is None)
            if self._stop_by is not None and (not self._scheduler.busy or time.monotonic() >= self._stop_by):
                self._leave()
            if self._scheduler.busy:
                self._step()

    def _read(self, *, block: bool) -> None:
        sockets: list[socket.socket] = [self._wake, *(self._workers.sockets if self._workers else [])]
        if self._peer:
            sockets.append(self._peer)
        readable, _, _ = select.select(sockets, [], [], None if block else 0)
        for ready in readable:
            if ready is self._wake:
                self._wake.recv(64)
            elif ready is self._peer:
                for message in processes.receive(ready, self._lines) or [{"op": "eof"}]:
                    self.obey(message)
            elif self._workers:
                self._fatal_worker(self._workers.name_of(ready))

    def obey(self, message: dict[str, Any]) -> None:
        """One message of the API server."""
        what = message["op"]
        if what == "add":
            self._add(message)
        elif what == "abort":
            if self._scheduler.abort(message["id"]):
                self._send({"op": "out", "o": [], "s": self._gauges()})
        elif what == "reset":
            self._scheduler.pool.reset()
        elif what == "crash":
            crash(message["code"], self.fatal)
        elif what == "eof":
            self._peer = None

    def _add(self, message: dict[str, Any]) -> None:
        request = EngineRequest(
            id=message["id"],
            prompt=message["prompt"],
            max_tokens=message["max_tokens"],
            min_tokens=message["min_tokens"],
            ignore_eos=message["ignore_eos"],
            seed=message["seed"],
            salt=message["salt"],
            stop_token_ids=frozenset(message["stop_token_ids"]),
        )
        if message.get("poison"):
            self._poison.add(request.id)
        if message.get("hang"):
            self._hang.add(request.id)
        self._scheduler.add(request)

    def _step(self) -> None:
        began = max(time.monotonic(), self._next_step_at)
        step = self._scheduler.step()
        if self._poison.intersection(step.admitted):
            crash(self._options.faults.crash_exit_code, self.fatal)
        self._next_step_at = began + self._duration_s(step)
        rest = self._next_step_at - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        if self._workers:
            try:
                self._workers.step()
            except WorkerDied as died:
                self._fatal_worker(str(died))
        self._send({
            "op": "out",
            "o": step.outputs,
            "a": step.cached_by_request,
            "s": {
                **self._gauges(),
                "prefill": step.prefill_tokens, "decode": step.decode_tokens, "queried": step.queried_tokens,
                "cached": step.cached_tokens, "preempted": step.preempted,
            },
        })  # fmt: skip
        self._maybe_hang(step)

    def _duration_s(self, step: Step) -> float:
        seconds = self._options.step_ms / 1000
        if step.prefill_tokens and self._options.prefill_tok_s > 0:
            seconds += step.prefill_tokens / self._options.prefill_tok_s
        jitter = self._options.faults.step_jitter
        return seconds * (1 + random.uniform(-jitter, jitter)) if jitter else seconds

    def _maybe_hang(self, step: Step) -> None:
        after = self._options.faults.engine_hang_after_s
        due = after is not None and time.monotonic() - self._ready_at >= after
        if not self._scheduler.running:
            return
        if due or any(request in self._hang for request, *_ in step.outputs):
            while (
                True
            ):  # as a collective that never completes: no step, no signal handled, only SIGKILL ends it
                time.sleep(3600)

    def _gauges(self) -> dict[str, Any]:
        scheduler = self._scheduler
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "kv": scheduler.pool.usage,
        }

    def _send(self, message: dict[str, Any]) -> None:
        if self._peer is None:
            return
        try:
            self._peer.sendall(processes.pack(message))
        except OSError:
            self._peer = None  # the API server is gone; go on, as vLLM does

    def _on_sigterm(self, _signal: int, _frame: object) -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._options.shutdown_timeout

    def _leave(self) -> NoReturn:
        limit = self._options.shutdown_timeout
        mode = "drain" if limit else "abort"
        self._log.say("core.py:1454", "[shutdown] EngineCore: trigger received signal=SIGTERM")
        self._log.say("core.py:1635", f"[shutdown] EngineCore: start mode={mode} timeout={limit}s")
        self._log.say(
            "core.py:1666", "[shutdown] EngineCore: request processing complete; starting resource teardown"
        )
        self._log.say("core.py:1499", "[shutdown] EngineCore: exiting busy loop")
        sys.exit(0)

    def fatal(self, error: str = CRASH, code: int = 1) -> NoReturn:
        """An exception nobody catches."""
        self._log.complain("core.py:1512", "EngineCore encountered a fatal error.")
        self._log.traceback("core.py:1512", _STEP_FRAMES, error)
        os._exit(code)

    def _fatal_worker(self, name: str) -> NoReturn:
        rank = int(name.rpartition("-")[2]) if name[-1].isdigit() else 0
        code = self._workers.processes[rank].poll() if self._workers else None
        self._log.complain(
            "multiproc_executor.py:315",
            f"Worker proc {name} died unexpectedly (exit code: {code}), shutting down executor.",
        )
        self.fatal("RuntimeError: cancelled")

    def _leak(self) -> None:
        """What vLLM's message queues leave when they are killed: segments and a semaphore nobody unlinks."""
        mark = secrets.token_hex(4)
        for name in (f"psm_{mark}", f"sem.mp-{mark}"):
            fd = os.open(f"/dev/shm/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)  # noqa: S108 - POSIX shared memory
            os.ftruncate(fd, 4096)
            self._leaked.append(mmap.mmap(fd, 4096))
            os.close(fd)


def crash(code: int | None, fatal: Any) -> None:
    """End this process as `--crash-exit-code` says: by a signal, or by an exception with that code."""
    if code is not None and code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(60)  # the signal is on its way
    fatal(CRASH, 1 if code is None else code)
