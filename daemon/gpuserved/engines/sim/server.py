"""The API server's life: bind, start EngineCore, load, serve, and the ways it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time

from gpuserved.engines.sim.api import ROUTES, Api
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.engine_client import DEAD, EngineClient
from gpuserved.engines.sim.flags import Options
from gpuserved.engines.sim.generation import Generator
from gpuserved.engines.sim.httpd import Connection, Service
from gpuserved.engines.sim.logs import Log, bare
from gpuserved.engines.sim.metrics import Metrics
from gpuserved.engines.sim.sabotage import Sabotage

STATS_INTERVAL_S = 10.0
"""vLLM's VLLM_LOG_STATS_INTERVAL."""
_BACKLOG = 2048
_DEATH_TO_EXIT_S = 1.3
"""From the engine's death to the server's exit, as measured on vLLM 0.32."""
_TERM_TO_KILL_S = 0.1
"""vLLM's patience with EngineCore where it need not drain."""
_POLL_S = 0.02


class ApiServer:
    """A server whose engine is ready."""

    def __init__(
        self,
        options: Options,
        listener: socket.socket,
        peer: socket.socket,
        engine: subprocess.Popen[bytes],
        log: Log,
    ) -> None:
        self._options = options
        self._listener = listener
        self._process = engine
        self._log = log
        metrics = Metrics(options)
        self._client = EngineClient(peer, metrics, self._on_engine_death)
        sabotage = Sabotage(options.faults, self._client.post_crash)
        generator = Generator(self._client, sabotage)
        self._server = Server(options, self._client, generator, metrics, sabotage, log)
        api = Api(self._server)
        self._service = Service(api.handle, api.log_access, options.faults.stall_after_bytes)
        self._http: asyncio.Server | None = None
        self._done = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Serve until something ends it.

        :returns: the exit code, which is 0 even where the engine died: vLLM's own behaviour.
        """
        loop = asyncio.get_running_loop()
        if not self._options.faults.ignore_sigterm:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal)
        await self._client.start()
        self._announce()
        self._listener.setblocking(False)
        if self._listener.family == socket.AF_UNIX:
            make = loop.create_unix_server(
                lambda: Connection(self._service), sock=self._listener, backlog=_BACKLOG
            )
        else:
            make = loop.create_server(
                lambda: Connection(self._service), sock=self._listener, backlog=_BACKLOG
            )
        self._http = await make
        bare("INFO:     Application startup complete.")
        self._start_tasks()
        await self._done.wait()
        return 0

    def _announce(self) -> None:
        where = f"unix:{self._options.uds}"
        if not self._options.uds:
            where = f"http://{self._options.host or '0.0.0.0'}:{self._listener.getsockname()[1]}"  # noqa: S104 - only said
        self._log.say("entry.py:136", "Supported tasks: ['generate']")
        self._log.say("entry.py:140", f"Starting vLLM server on {where}")
        self._log.say("launcher.py:186", "Available routes are:")
        for method, path in ROUTES:
            self._log.say("launcher.py:195", f"Route: {path}, Methods: {method}")
        bare("INFO:     Waiting for application startup.")

    def _start_tasks(self) -> None:
        faults = self._options.faults
        start = asyncio.get_running_loop().create_task
        if self._options.log_stats:
            self._tasks.append(start(self._log_stats()))
        if faults.crash_after_s is not None:
            self._tasks.append(start(self._crash_later(faults.crash_after_s)))
        if faults.log_flood:
            self._tasks.append(start(self._flood(faults.log_flood)))

    async def _crash_later(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._server.sabotage.crash()

    async def _flood(self, lines_per_s: float) -> None:
        started, written = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - started) * lines_per_s)
            for number in range(written, due):
                self._log.say("flood.py:1", f"line {number} " + "x" * 160)
            written = due
            await asyncio.sleep(max(0.01, 1 / lines_per_s))

    async def _log_stats(self) -> None:
        """Every 10 s while there is traffic, and once more after it."""
        last = (0, 0)
        quiet = True
        while True:
            await asyncio.sleep(STATS_INTERVAL_S)
            now = (self._client.prompt_tokens, self._client.generation_tokens)
            values = self._server.metrics.values
            idle = now == last and not values.get("num_requests_running")
            if not (idle and quiet):
                queries = values.get("prefix_cache_queries", 0.0)
                hit_pct = 100 * values.get("prefix_cache_hits", 0.0) / queries if queries else 0.0
                self._log.say(
                    "loggers.py:335",
                    f"Engine 000: Avg prompt throughput: {(now[0] - last[0]) / STATS_INTERVAL_S:.1f} tokens/s, "
                    f"Avg generation throughput: {(now[1] - last[1]) / STATS_INTERVAL_S:.1f} tokens/s, "
                    f"Running: {int(values.get('num_requests_running', 0))} reqs, "
                    f"Waiting: {int(values.get('num_requests_waiting', 0))} reqs, "
                    f"GPU KV cache usage: {100 * values.get('kv_cache_usage_perc', 0.0):.1f}%, "
                    f"Prefix cache hit rate: {hit_pct:.1f}%",
                )
            quiet, last = idle, now

    # the engine's death

    def _on_engine_death(self) -> None:
        self._process.poll()
        log = self._log
        log.alert(
            "core_client.py:817", "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
        )
        log.say("core_client.py:770", "[shutdown] MPClient: start timeout=default")
        log.say("core_client.py:777", "[shutdown] MPClient: complete")
        log.complain("async_llm.py:906", "AsyncLLM output_handler failed.")
        frames = (
            (
                "v1/engine/async_llm.py:849",
                "output_handler",
                "outputs = await engine_core.get_output_async()",
            ),
        )
        log.traceback("async_llm.py:906", frames, f"vllm.v1.engine.exceptions.EngineDeadError: {DEAD}")
        self._tasks.append(asyncio.get_running_loop().create_task(self._end_without_engine()))

    async def _end_without_engine(self) -> None:
        linger = self._options.dead_engine_linger_s
        await asyncio.sleep(linger)
        bare("INFO:     Shutting down")
        self._close_listener()
        await asyncio.sleep(max(_DEATH_TO_EXIT_S - linger, 0.1))
        bare("INFO:     Finished server process")
        self._done.set()

    # SIGTERM

    def _on_signal(self) -> None:
        if not self._stopping:  # a second one changes nothing
            self._stopping = True
            self._tasks.append(asyncio.get_running_loop().create_task(self._stop()))

    async def _stop(self) -> None:
        """Stop the engine, then wait for open answers, however long that takes: vLLM sets no limit there."""
        limit, log = self._options.shutdown_timeout, self._log
        log.say("launcher.py:254", "[shutdown] API server: shutdown triggered")
        mode = "drain" if limit else "abort"
        log.say(
            "launcher.py:270", f"[shutdown] API server: stopping engine client mode={mode} timeout={limit}s"
        )
        log.say("core_client.py:770", f"[shutdown] MPClient: start timeout={limit}s")
        log.say("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        self._client.end_expected()
        self._process.terminate()
        patience = limit + 1.0 if limit else _TERM_TO_KILL_S
        deadline = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._process.poll() is None:
            log.alert(
                "utils.py:653",
                f"[shutdown] Process manager: force killing remaining process EngineCore pid {self._process.pid}",
            )
            self._process.kill()
            while self._process.poll() is None:
                await asyncio.sleep(_POLL_S)
        log.say("core_client.py:777", "[shutdown] MPClient: complete")
        log.say("launcher.py:282", "[shutdown] API server: signalling HTTP server shutdown")
        bare("INFO:     Shutting down")
        self._close_listener()
        await self._service.emptied.wait()
        bare("INFO:     Application shutdown complete.")
        self._done.set()

    def _close_listener(self) -> None:
        if self._http:
            self._http.close()
        self._service.close_idle()
