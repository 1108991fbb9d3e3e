"""The commands of `gpuserve`. Each is a module with `add_arguments` and `run`, imported when it is the one that was typed."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any, NoReturn

import gpuserved

TARGET = "a profile's NAME.toml, a model's folder, a profile's name, or a hub id OWNER/NAME (quick start)"


@dataclass(frozen=True)
class Verb:
    """One command."""

    module: str
    """Of `gpuserved.cli`."""
    summary: str
    json: bool = True
    """It has --json."""


VERBS = {
    "up": Verb("up", "start a daemon in the background if none runs, apply the targets, and wait until they are ready"),
    "apply": Verb("apply", "add or update these profiles, replicas one by one; others are left alone"),
    "down": Verb("down", "drain, stop everything, and stop the daemon", json=False),
    "plan": Verb("plan", "say where the replicas of a target would go, without changing anything; needs no daemon"),
    "status": Verb("status", "show GPUs, replicas and the URL"),
    "top": Verb("top", "show the load of every model and replica: queues, tokens per second, latencies, cache hits"),
    "gpus": Verb("status", "show the GPUs and who uses them"),
    "events": Verb("events", "show what has happened, also under earlier daemons, and with -f each change as it happens"),
    "crash": Verb("crash", "show the last crash of a replica: exit, first tracebacks, GPUs, and what helps"),
    "logs": Verb("logs", "show what a replica, or the daemon, has written"),
    "start": Verb("act", "start replicas that are stopped, failed or waiting"),
    "stop": Verb("act", "take replicas out of rotation, wait for their requests, and stop them"),
    "restart": Verb("act", "drain, stop and start replicas; those of a PROFILE one by one"),
    "drain": Verb("act", "take replicas out of rotation and keep them running"),
    "undrain": Verb("act", "put drained replicas back into rotation"),
    "scale": Verb("act", "change the number of replicas of a profile"),
    "quarantine": Verb("act", "set GPUs aside: their replicas are drained, and move to others or wait"),
    "release": Verb("act", "let GPUs that were set aside be used again; what waited for them starts"),
    "reload": Verb("apply", "read the configuration, keys and profiles again"),
    "upgrade": Verb("upgrade", "let this version of gpuserve take over daemon and routers; replicas go on, no request fails, no stream is cut"),
    "doctor": Verb("doctor.command", "check this host: driver, vLLM, hub, folders, limits, port, service; each problem with what removes it"),
    "import-llamafactory": Verb("import_llamafactory", "make a profile of a LlamaFactory inference YAML, with every key accounted for"),
    "schema": Verb("schema", "print the JSON Schema of a profile, for editors", json=False),
    "route": Verb("route", "the router alone, in the foreground, in front of OpenAI-compatible servers that run already; needs no daemon", json=False),
    "bench": Verb("bench", "a load test: requests go out when they are due, however many are in flight (key: GPUSERVE_API_KEY)"),
    "chat": Verb("chat", "one chat completion through the router, as it is written (key: GPUSERVE_API_KEY)"),
    "keys": Verb("keys", "list, add and remove API keys, and what each may use and has used"),
    "sim-engine": Verb("sim_engine", "the look-alike of vLLM, for tests and demonstrations", json=False),
    "completion": Verb("completion", "print the completion script of a shell", json=False),
    "version": Verb("version", "print the releases of this command and of the daemon"),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Complains in one line and points at --help."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2, as for every wrong usage."""
        self.exit(2, f"{self.prog}: {message}\n  see {self.prog} --help\n")


class VerbParser(Parser):
    """The parser of one command, which is imported once its arguments are wanted."""

    def __init__(self, *, verb: str, **given: Any) -> None:
        """:param given: for argparse."""
        self.verb = verb
        self._declared = False
        summary = VERBS[verb].summary
        super().__init__(
            description=summary[:1].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **given,
        )

    def declare(self) -> None:
        """Let the command declare its arguments."""
        if self._declared:
            return
        self._declared = True
        self.add_argument(
            "--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's control socket"
        )
        if VERBS[self.verb].json:
            self.add_argument("--json", action="store_true", help="print JSON")
        found: Any = importlib.import_module(f"gpuserved.cli.{VERBS[self.verb].module}")
        found.add_arguments(self)
        self.set_defaults(run=found.run)

    def examples(self, *lines: str) -> None:
        """Shown below the help, without the word gpuserve."""
        self.epilog = "examples:\n" + "\n".join(f"  gpuserve {line}" for line in lines)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.declare()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        self.declare()
        return super().format_help()


def build() -> argparse.ArgumentParser:
    """The whole parser."""
    parser = Parser(
        prog="gpuserve",
        description="One machine, many GPUs, one URL.",
        epilog="exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon, 4 refused, 5 timed out",
    )
    parser.add_argument("--version", action="version", version=f"gpuserve {gpuserved.__version__}")
    parser.add_argument("--socket", metavar="PATH", default=None, help="the daemon's control socket")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=VerbParser)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.summary, verb=name)
    return parser


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--engine of a quick start."""
    from gpuserved.core.profile import EngineName

    parser.add_argument(
        "--engine", choices=[engine.value for engine in EngineName if engine is not EngineName.COMMAND],
        help="the engine of a quick start (vllm)",
    )  # fmt: skip


def add_no_wait(parser: argparse.ArgumentParser) -> None:
    """--no-wait of what begins a rolling change."""
    parser.add_argument(
        "--no-wait", action="store_true", help="do not wait for a rolling change; gpuserve status shows it"
    )


def seconds(text: str) -> float:
    """Seconds, not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A whole number, not negative."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def port(text: str) -> int:
    """A TCP port."""
    value = int(text)
    if not 1 <= value <= 65535:
        raise ValueError(text)
    return value


for _kind, _name in ((seconds, "seconds"), (count, "number"), (port, "port")):
    _kind.__name__ = _name  # argparse shows the name: "invalid port value: '0'"
