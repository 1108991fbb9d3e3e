"""The API server's part of the fault switches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from gpuserved.engines.sim.faults import Faults
from gpuserved.engines.sim.logs import bare
from gpuserved.engines.sim.tokens import decode


class Sabotage:
    """Decides when a fault strikes.

    :param crash_engine: tells EngineCore to crash with an exit code.
    """

    def __init__(self, faults: Faults, crash_engine: Callable[[int | None], None]) -> None:
        self.faults = faults
        self._crash_engine = crash_engine
        self._started = time.monotonic()
        self._requests = 0

    def crash(self) -> None:
        """End one of the processes now."""
        if self.faults.crash_process == "engine":
            self._crash_engine(self.faults.crash_exit_code)
        else:
            end_api_server(self.faults.crash_exit_code)

    def count_request(self) -> None:
        """A generating request came in."""
        self._requests += 1
        if self._requests == self.faults.crash_after_requests:
            self.crash()

    def of_prompt(self, prompt: list[int]) -> tuple[bool, bool]:
        """Whether this prompt kills the engine, and whether it hangs it."""
        poison, hang = self.faults.crash_on_prompt, self.faults.engine_hang_on_prompt
        if poison is None and hang is None:
            return False, False
        text = decode(prompt)
        kills = poison is not None and poison in text
        if kills and self.faults.crash_process == "api":
            end_api_server(self.faults.crash_exit_code)
        return kills, hang is not None and hang in text

    def after_tokens(self, sent: int) -> None:
        """A stream has sent that many tokens."""
        if self.faults.die_mid_stream_after_tokens == sent:
            self.crash()

    def stalls_at(self, sent: int) -> bool:
        """Whether the stream goes no further."""
        return self.faults.stall_after_tokens == sent

    def health(self) -> int | None:
        """The status of /health where a fault decides it: 503, 0 for no answer at all, None for the truth."""
        up_s = time.monotonic() - self._started
        hang, flap = self.faults.health_hang_after_s, self.faults.health_flap
        if hang is not None and up_s >= hang:
            return 0
        if flap and int(up_s / flap) % 2:
            return 503
        return None


def end_api_server(code: int | None) -> None:
    """Crash this process: by a signal where the code is negative."""
    if code is not None and code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(60)  # the signal is on its way
    bare("Traceback (most recent call last):")
    bare('  File "vllm/entrypoints/launchers/api_server/entry.py", line 176, in run_server')
    bare("RuntimeError: simulated crash of the API server")
    os._exit(1 if code is None else code)


GARBAGE = {
    "bad-chunk": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    b"6\r\ndata: \r\n+zz\r\nnot a chunk\r\n\r\n",
    "truncated-chunked": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked"
    b"\r\n\r\n40\r\ndata: {",
    "short-body": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"id":"chatcmpl-0"',
    "long-body": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}{"more":"than promised"}',
    "huge-header": b"HTTP/1.1 200 OK\r\nx-huge: " + b"h" * (1 << 20) + b"\r\ncontent-length: 2\r\n\r\n{}",
    "not-http": b"\x00\x15\x03 this is not HTTP at all\r\n\r\n",
}
"""What `--garbage-response` sends before it closes the connection."""
