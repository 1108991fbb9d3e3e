"""`serve`: from the command line to a running server."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys

from gpuserved.engines.sim import load, processes
from gpuserved.engines.sim.flags import Options, parse
from gpuserved.engines.sim.logs import Log, bare
from gpuserved.engines.sim.processes import spawn

_USAGE = "usage: python -m gpuserved.engines.sim serve MODEL [options]   (serve --help lists them)"
_TERM_TO_KILL_S = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run the look-alike.

    :param argv: `serve MODEL ...`; None: the process's own arguments.
    :returns: the exit code.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] != "serve":
        asked = bool(arguments) and arguments[0] in {"-h", "--help"}
        (sys.stdout if asked else sys.stderr).write(_USAGE + "\n")
        return 0 if asked else 2
    options = parse(arguments[1:])
    if options.faults.fail_load == "bad-flag":
        load.fail_flag()
    return _serve(options)


def _serve(options: Options) -> int:
    log = Log("APIServer")
    load.announce(options, log)
    listener = _bind(options)
    load.resolve(options, log)
    ours, theirs = socket.socketpair()
    tracker = _resource_tracker()
    title, module = "VLLM::EngineCore", "gpuserved.engines.sim.engine_core"
    engine = spawn(title, module, fds=(theirs.fileno(), tracker), argument=theirs.fileno())
    theirs.close()
    ours.sendall(processes.pack(dataclasses.asdict(options)))
    _interrupt_on_sigterm(options)
    try:
        from gpuserved.engines.sim.server import ApiServer  # imported while the engine starts

        if not processes.receive(ours, processes.Lines()):
            load.engine_failed(log)
        if options.faults.crash_after_load:
            from gpuserved.engines.sim.sabotage import end_api_server

            end_api_server(options.faults.crash_exit_code)
        import asyncio

        async def serve() -> int:
            return await ApiServer(options, listener, ours, engine, log).run()

        return asyncio.run(serve())
    finally:
        _end(engine)


def _bind(options: Options) -> socket.socket:
    """The listening socket, bound and not listening: connections are refused until the model is loaded."""
    try:
        if options.uds:
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(options.uds)
            return bound
        bound = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((options.host, options.port))
    except OSError as error:
        load.fail_bind(error)
    return bound


def _resource_tracker() -> int:
    """Start multiprocessing's resource tracker, as vLLM's shared memory does; EngineCore keeps it alive too."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    fd = resource_tracker.getfd()
    assert fd is not None
    return fd


def _interrupt_on_sigterm(options: Options) -> None:
    """While loading, SIGTERM is a KeyboardInterrupt."""
    if options.faults.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, interrupt)


def _end(engine: subprocess.Popen[bytes]) -> None:
    if engine.poll() is not None:
        return
    engine.terminate()
    try:
        engine.wait(_TERM_TO_KILL_S)
    except subprocess.TimeoutExpired:
        bare("force killing EngineCore")
        engine.kill()
        engine.wait()
