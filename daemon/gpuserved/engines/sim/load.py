"""Loading: the phases of a start with the lines vLLM writes in them, and the ways a start fails."""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from gpuserved.engines.sim.flags import VLLM_VERSION, Options
from gpuserved.engines.sim.logs import BANNER, Log, bare, plain_traceback

_SHARDS = 4
_GRAPHS = 8
_INIT_FRAMES = (
    (
        "v1/engine/core.py:1496",
        "run_engine_core",
        "engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
    ),
    ("v1/engine/core.py:326", "_initialize_kv_caches", "kv_cache_configs = get_kv_cache_configs("),
)
_API_FRAMES = (
    ("v1/engine/utils.py:1351", "launch_core_engines", "wait_for_engine_startup("),
    ("v1/engine/utils.py:1431", "wait_for_engine_startup", "raise RuntimeError("),
)


def announce(options: Options, log: Log) -> None:
    """What the API server says before the engine exists."""
    for line in BANNER:
        log.say("api_utils.py:347", line.format(version=VLLM_VERSION, model=options.model))
    given = {"model_tag": options.model, "model": options.model, **dict(options.given)}
    log.say("api_utils.py:286", f"non-default args: {given}")


def resolve(options: Options, log: Log) -> None:
    """The configuration step; where it fails, the API server ends before there is an engine."""
    kind = options.faults.fail_load
    if kind == "missing-model" or (options.model.startswith("/") and not os.path.exists(options.model)):
        path = options.model if options.model.startswith("/") else "/nonexistent/" + options.model
        plain_traceback(
            (
                (
                    "transformers_utils/repo_utils.py:301",
                    "get_model_path",
                    "return hf_api().snapshot_download(",
                ),
            ),
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            f"'namespace/repo_name': '{path}'. Use `repo_type` argument if needed.",
        )
        raise SystemExit(1)
    if kind == "hub":
        plain_traceback(
            (
                (
                    "transformers_utils/repo_utils.py:301",
                    "get_model_path",
                    "return hf_api().snapshot_download(",
                ),
            ),
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
            "specified revision on the local disk and outgoing traffic has been disabled.",
        )
        raise SystemExit(1)
    if kind == "port-in-use":
        fail_bind(OSError(98, "Address already in use"))
    log.say("model.py:733", "Resolved architecture: LlamaForCausalLM")
    log.say("model.py:2152", f"Using max model len {options.max_model_len}")


def fail_flag() -> NoReturn:
    """What argparse says to a flag that this version does not have."""
    bare("usage: vllm [-h] [-v] {chat,complete,serve,launch,bench,collect-env,run-batch} ...")
    bare("vllm: error: unrecognized arguments: --no-such-flag 3")
    raise SystemExit(2)


def fail_bind(error: OSError) -> NoReturn:
    """The socket cannot be bound; vLLM binds before it loads."""
    plain_traceback(
        (
            (
                "entrypoints/launchers/api_server/entry.py:176",
                "run_server",
                "listen_address, sock = setup_server(args)",
            ),
            ("entrypoints/launchers/launcher.py:348", "create_server_socket", "sock.bind(addr)"),
        ),
        f"OSError: [Errno {error.errno}] {error.strerror}",
    )
    raise SystemExit(1)


def engine_failed(log: Log) -> NoReturn:
    """The engine ended before it was ready."""
    log.say("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
    plain_traceback(
        _API_FRAMES,
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    )
    raise SystemExit(1)


class Loading:
    """The engine's part of a start, spread over `load_s`."""

    def __init__(self, options: Options, log: Log) -> None:
        self._options = options
        self._log = log
        self._started = time.monotonic()

    def run(self) -> None:
        """Load. Ends the process where the start is to fail."""
        options, log = self._options, self._log
        log.say(
            "core.py:133",
            f"Initializing a V1 LLM engine (v{VLLM_VERSION}) with config: model='{options.model}', speculative_config=None, "
            f"tokenizer='{options.model}', max_seq_len={options.max_model_len}, "
            f"tensor_parallel_size={options.tensor_parallel_size}, pipeline_parallel_size=1, data_parallel_size=1",
        )
        self._until(0.05)
        log.say("gpu_model_runner.py:4871", f"Starting to load model {options.model}...")
        self._fail_early()
        for shard in range(_SHARDS + 1):
            self._until(0.05 + 0.4 * shard / _SHARDS)
            done = f"{100 * shard // _SHARDS:3d}% Completed | {shard}/{_SHARDS}"
            bare(f"Loading safetensors checkpoint shards: {done} [00:00<?, ?it/s]")
        log.say("default_loader.py:501", f"Loading weights took {self._elapsed():.2f} seconds")
        if options.faults.slow_start_stall_s:
            time.sleep(options.faults.slow_start_stall_s)
        log.say("backends.py:642", f"Dynamo bytecode transform time: {0.1 * options.load_s:.2f} s")
        self._until(0.7)
        log.say("monitor.py:53", f"torch.compile takes {0.25 * options.load_s:.2f} s in total")
        self._fail_late()
        tokens = options.kv_cache_tokens
        most = tokens / options.max_model_len
        log.say("gpu_worker.py:416", f"Available KV cache memory: {tokens * 131072 / 2**30:.2f} GiB")
        log.say(
            "kv_cache_utils.py:2327",
            f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {options.max_model_len:,} tokens per request: {most:.2f}x",
        )
        for graph in range(_GRAPHS + 1):
            self._until(0.75 + 0.25 * graph / _GRAPHS)
            bare(
                f"Capturing CUDA graphs (decode, FULL): {100 * graph // _GRAPHS:3d}%|#####| {graph}/{_GRAPHS} [00:00<00:00]"
            )
        log.say(
            "core.py:402",
            f"init engine (profile, create kv cache, warmup model) took {self._elapsed():.2f} s",
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _until(self, part: float) -> None:
        """Wait until `part` of the load time has passed."""
        rest = part * self._options.load_s - self._elapsed()
        if rest > 0:
            time.sleep(rest)

    def _fail_early(self) -> None:
        kind = self._options.faults.fail_load
        if kind == "oom":
            self._until(0.3)
            self._fatal(
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of "
                "79.10 GiB of which 86.88 MiB is free."
            )
        if kind == "killed":
            self._until(0.3)
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "engine":
            self._until(0.3)
            self._fatal("RuntimeError: CUDA error: an illegal memory access was encountered")

    def _fail_late(self) -> None:
        if self._options.faults.fail_load == "kv-too-small":
            self._fatal(
                "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
                "initializing the engine."
            )

    def _fatal(self, error: str) -> NoReturn:
        self._log.complain("core.py:1510", "EngineCore failed to start.")
        self._log.traceback("core.py:1510", _INIT_FRAMES, error)
        os._exit(1)
