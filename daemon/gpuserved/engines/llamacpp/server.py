"""llama.cpp's HTTP server on a Unix socket, as a program: `python -m gpuserved.engines.llamacpp.server --uds ... `.

It runs in the interpreter that has `xllamacpp` and imports nothing else but the standard library. Lines that begin
with `gpuserve:` are for the adapter, which reads phases and causes out of the log.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuserved.engines.llamacpp.model import PACKAGED, ModelError, ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_REFUSED = 3
"""The start cannot succeed as it is: the last `gpuserve: error:` line says why."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; lengths are tokens."""
    parser = argparse.ArgumentParser(prog="gpuserved.engines.llamacpp.server", allow_abbrev=False)
    parser.add_argument("--uds", required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--model", required=True, help="a .gguf file, or the name of a packaged model")
    parser.add_argument("--models-dir", required=True, help="where a packaged model is put together")
    parser.add_argument("--alias", required=True, help="the served name")
    parser.add_argument(
        "--ctx-per-slot", type=int, default=0, help="context of one request; 0: the model's own"
    )
    parser.add_argument("--parallel", type=int, default=4, help="requests decoded at once")
    parser.add_argument("--threads", type=int, default=0, help="0: llama.cpp decides")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--ubatch-size", type=int, default=0)
    parser.add_argument("--gpu-layers", type=int, default=-1, help="-1: as many as fit")
    parser.add_argument("--cache-ram-mib", type=int, default=256, help="prompt cache in host memory")
    parser.add_argument("--max-tokens", type=int, default=-1, help="cap of one answer; -1: the context")
    parser.add_argument("--template", help="a Jinja chat template; default: the model's own")
    parser.add_argument(
        "--stop", action="append", default=[], help="a stop string of every request that names none"
    )
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(f"gpuserve: {text}", flush=True)


def _model_file(options: argparse.Namespace) -> Path:
    if packaged := PACKAGED.get(options.model):
        return ensure(packaged, Path(options.models_dir), _say)
    if not Path(options.model).is_file():
        raise ModelError(f"there is no model file {options.model}")
    return Path(options.model)


def _parameters(xllamacpp: Any, options: argparse.Namespace, model: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {options.alias}
    params.hostnames = [options.uds]  # a name that ends in .sock is a Unix socket to llama.cpp
    params.port = 0
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_per_slot * options.parallel
    params.n_gpu_layers = options.gpu_layers
    params.n_predict = options.max_tokens
    params.cache_ram_mib = options.cache_ram_mib
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows the prompts of others
    params.ui = False
    params.verbosity = 2  # warnings and errors; more would be seven lines for each request
    for name, value in (("n_batch", options.batch_size), ("n_ubatch", options.ubatch_size)):
        if value:
            setattr(params, name, value)
    if options.threads:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    if options.template:
        params.chat_template = Path(options.template).read_text()
    if options.stop:
        params.antiprompt = list(options.stop)
    return params


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0 then; `EXIT_REFUSED` where the model cannot be served."""
    options = parse(sys.argv[1:] if argv is None else argv)
    # Blocked before any thread exists, so that sigwait alone gets them and the server ends in order.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        import xllamacpp
    except ImportError as error:
        _say(f"error: not installed: {error}; pip install 'gpuserve[demo]'")
        return EXIT_REFUSED
    try:
        params = _parameters(xllamacpp, options, _model_file(options))
    except (ModelError, OSError) as error:
        _say(f"error: model missing: {error}")
        return EXIT_REFUSED
    _say("loading weights")
    try:
        Path(options.uds).unlink(missing_ok=True)  # what a killed server left: llama.cpp cannot bind over it
        server = xllamacpp.Server(params)
    except Exception as error:
        _say(f"error: not loaded: {error}")
        return EXIT_REFUSED
    _say(f"serving on {server.listening_address}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    _say("stopping")
    del server  # ends its threads
    return 0


if __name__ == "__main__":
    sys.exit(main())
