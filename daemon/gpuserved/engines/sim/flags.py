"""The command line: vLLM's flags that the look-alike obeys or accepts, its own pacing, and the fault switches."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from gpuserved.engines.sim import faults as fault_switches
from gpuserved.engines.sim.faults import Faults, add_fault_flags

VLLM_VERSION = "0.32.0"
DEFAULT_MAX_MODEL_LEN = 8192
_EXAMPLE = (
    "example: python -m gpuserved.engines.sim serve sim/llama-8b --uds /tmp/r0.sock --served-model-name sim "
    "--load-s 5 --step-ms 20 --crash-after-requests 10"
)
_IGNORED_SWITCHES = (
    "enforce-eager", "trust-remote-code", "enable-prefix-caching", "enable-chunked-prefill", "disable-log-requests",
    "no-enable-log-requests", "enable-sleep-mode", "enable-request-id-headers",
)  # fmt: skip
_IGNORED_VALUES = (
    "dtype",
    "load-format",
    "seed",
    "tokenizer",
    "kv-cache-dtype",
    "allowed-media-domains",
    "quantization",
)


@dataclass(frozen=True)
class Options:
    """One `serve` command line."""

    model: str
    uds: str | None
    host: str
    port: int
    served_model_name: str
    tensor_parallel_size: int = 1
    max_model_len: int = DEFAULT_MAX_MODEL_LEN
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float = 0.92
    shutdown_timeout: int = 0
    load_s: float = 0.0
    step_ms: float = 10.0
    prefill_tok_s: float = 20000.0
    kv_cache_tokens: int = 65536
    dead_engine_linger_s: float = 0.2
    access_log: bool = True
    log_stats: bool = True
    load_tracking: bool = False
    faults: Faults = field(default_factory=Faults)
    given: tuple[tuple[str, Any], ...] = ()
    """What was set on the command line, for the log."""


class _Parser(argparse.ArgumentParser):
    """Says no the way vLLM does."""

    def error(self, message: str) -> Any:
        if message.startswith("unrecognized arguments"):
            sys.stderr.write(
                "usage: vllm [-h] [-v] {chat,complete,serve,launch,bench,collect-env,run-batch} ...\n"
            )
            sys.stderr.write(f"vllm: error: {message}\n")
        else:
            sys.stderr.write("usage: vllm serve [model_tag] [options]\n")
            sys.stderr.write(f"vllm serve: error: {message}\n")
        raise SystemExit(2)


def _length(text: str) -> int:
    if text in {"auto", "-1"}:
        return DEFAULT_MAX_MODEL_LEN
    scale = {"k": 1000, "K": 1024}.get(text[-1:], 0)
    try:
        return int(float(text[:-1]) * scale) if scale else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid human_readable_int_or_auto value: {text!r}") from None


def _add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or hub id; nothing is read from it, an absolute path must exist",
    )
    group = parser.add_argument_group("flags of vLLM")
    group.add_argument("--uds", metavar="PATH", help="listen on a Unix socket; host and port are ignored")
    group.add_argument("--host", default="", help="address to listen on (all)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    group.add_argument("--served-model-name", metavar="NAME", help="the name requests use (MODEL)")
    group.add_argument(
        "--tensor-parallel-size",
        "-tp",
        type=int,
        default=1,
        metavar="N",
        help="with N > 1 there are N worker processes",
    )
    group.add_argument(
        "--max-model-len",
        type=_length,
        default=DEFAULT_MAX_MODEL_LEN,
        metavar="N",
        help="tokens of prompt and answer; `auto` is 8192",
    )
    group.add_argument(
        "--max-num-seqs",
        type=int,
        default=256,
        metavar="N",
        help="requests in one step; the rest waits (256)",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        default=2048,
        metavar="N",
        help="tokens computed in one step (2048)",
    )
    group.add_argument(
        "--gpu-memory-utilization", type=float, default=0.92, metavar="X", help="reported only"
    )
    group.add_argument(
        "--shutdown-timeout",
        type=int,
        default=0,
        metavar="S",
        help="SIGTERM lets requests finish for S seconds; 0 stops the engine at once (0)",
    )
    _add_switches(group)


def _add_switches(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--disable-uvicorn-access-log",
        dest="access_log",
        action="store_false",
        help="no line for each request",
    )
    group.add_argument(
        "--disable-log-stats", dest="log_stats", action="store_false", help="no throughput lines"
    )
    group.add_argument(
        "--enable-server-load-tracking", dest="load_tracking", action="store_true", help="/load counts"
    )
    for name in _IGNORED_SWITCHES:
        group.add_argument("--" + name, action="store_true", help="accepted, without effect")
    for name in _IGNORED_VALUES:
        group.add_argument("--" + name, metavar="X", help="accepted, without effect")


def _add_sim_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the engine is like")
    group.add_argument(
        "--load-s",
        type=float,
        default=0.0,
        metavar="S",
        help="loading takes S seconds, with the log lines of its phases (0)",
    )
    group.add_argument(
        "--step-ms",
        type=float,
        default=10.0,
        metavar="MS",
        help="duration of one step; each running request gets one token a step (10)",
    )
    group.add_argument(
        "--step-jitter",
        type=float,
        default=0.0,
        metavar="X",
        help="steps take up to this fraction more or less (0)",
    )
    group.add_argument(
        "--prefill-tok-s",
        type=float,
        default=20000.0,
        metavar="N",
        help="uncached prompt tokens computed per second; 0 is at once (20000)",
    )
    group.add_argument(
        "--kv-cache-tokens",
        type=int,
        default=65536,
        metavar="N",
        help="capacity of the KV cache, shared by requests and cached prefixes (65536)",
    )
    group.add_argument(
        "--dead-engine-linger-s",
        type=float,
        default=0.2,
        metavar="S",
        help="how long a server without engine still answers, with 503 and 500 (0.2)",
    )
    group.add_argument(
        "--faults-file",
        metavar="PATH",
        help='JSON read at start: {"REPLICA[@GENERATION]": {"flag": value}}, by GPUSERVE_REPLICA',
    )


def parser() -> argparse.ArgumentParser:
    """The parser of `serve`."""
    made = _Parser(
        prog="vllm serve",
        description="A look-alike of vLLM's server, without a model.",
        epilog=_EXAMPLE,
        allow_abbrev=False,
    )
    _add_vllm_flags(made)
    _add_sim_flags(made)
    add_fault_flags(made)
    return made


def known_flags() -> frozenset[str]:
    """Names of all flags, with underscores."""
    actions = parser()._actions  # noqa: SLF001 - argparse has no public list
    names = {name for action in actions for name in action.option_strings if name.startswith("--")}
    return frozenset(name[2:].replace("-", "_") for name in names - {"--help"})


def parse(argv: list[str]) -> Options:
    """One command line.

    :raises SystemExit: code 2 and a line on stderr where it is wrong; 0 for --help.
    """
    arguments = parser().parse_args(argv)
    if arguments.faults_file:
        try:
            arguments = parser().parse_args(
                [*argv, *fault_switches.overrides(arguments.faults_file, os.environ)]
            )
        except fault_switches.BadFaultsFile as error:
            parser().error(f"argument --faults-file: {error}")
    values = vars(arguments)
    defaults = vars(parser().parse_args(["MODEL"]))
    given = tuple(
        (name, value) for name, value in values.items() if name != "model" and value != defaults[name]
    )
    fault_names = {item.name for item in dataclasses.fields(Faults)}
    option_names = {item.name for item in dataclasses.fields(Options)} - {"faults", "given"}
    faults = Faults(**{name: value for name, value in values.items() if name in fault_names})
    kept = {name: value for name, value in values.items() if name in option_names}
    kept["served_model_name"] = values["served_model_name"] or values["model"]
    return Options(faults=faults, given=given, **kept)
