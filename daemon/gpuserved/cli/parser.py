"""Every command's arguments. The code of a command is named by text and imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import gpuserved
from gpuserved.core.profile import EngineName

Command = Callable[[argparse.Namespace], int]
_SHELLS = ("bash", "zsh", "tcsh")
_TARGET = "a profile's NAME.toml, a model's folder, a profile's name, or a hub id OWNER/NAME (quick start)"


class _Parser(argparse.ArgumentParser):
    """Complains in one line and points at --help."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2, as for every wrong usage."""
        self.exit(2, f"{self.prog}: {message}\n  see {self.prog} --help\n")


class _Verbs:
    """Adds commands that share the common options."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._into = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)

    def add(
        self, name: str, run: str, summary: str, example: str, *, json: bool = True
    ) -> argparse.ArgumentParser:
        """One command.

        :param run: `module:function`.
        """
        verb = self._into.add_parser(
            name,
            help=summary,
            description=summary[:1].upper() + summary[1:] + ".",
            epilog="examples:\n" + "\n".join(f"  gpuserve {line}" for line in example.split("\n")),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(run=run)
        verb.add_argument(
            "--socket", metavar="PATH", default=argparse.SUPPRESS, help="the daemon's control socket"
        )
        if json:
            verb.add_argument("--json", action="store_true", help="print JSON")
        return verb


def load(run: str) -> Command:
    """The function that `module:function` names."""
    import importlib

    module, function = run.split(":")
    found: Any = getattr(importlib.import_module(f"gpuserved.cli.{module}"), function)
    command: Command = found
    return command


def build() -> argparse.ArgumentParser:
    """The whole parser."""
    parser = _Parser(
        prog="gpuserve",
        description="One machine, many GPUs, one URL.",
        epilog="exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon, 4 refused, 5 timed out",
    )
    parser.add_argument("--version", action="version", version=f"gpuserve {gpuserved.__version__}")
    parser.add_argument("--socket", metavar="PATH", default=None, help="the daemon's control socket")
    verbs = _Verbs(parser)
    _run_verbs(verbs)
    _look_verbs(verbs)
    _act_verbs(verbs)
    _other_verbs(verbs)
    return parser


def _run_verbs(verbs: _Verbs) -> None:
    up = verbs.add(
        "up",
        "up:up",
        "start a daemon in the background if none runs, apply the targets, and wait until they are ready",
        "up profiles/demo.toml\nup meta-llama/Llama-3.1-8B-Instruct --listen 0.0.0.0:8000 --generate-key",
    )
    up.add_argument("targets", nargs="*", metavar="TARGET", help=_TARGET)
    where = up.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="HOST:PORT", help="where a new daemon's router listens (127.0.0.1:8000)"
    )
    where.add_argument("--port", type=_port, metavar="PORT", help="the same, on this machine only")
    _engine(up)
    up.add_argument(
        "--wait",
        type=_seconds,
        default=1800.0,
        metavar="S",
        help="how long to wait for ready (1800); 0: do not wait",
    )
    up.add_argument("--config", metavar="FILE", help="gpuserved.toml of a new daemon")
    up.add_argument("--keys-file", metavar="FILE", help="API keys of a new daemon, hashed")
    up.add_argument("--generate-key", action="store_true", help="make an API key and print it once")
    up.add_argument("--insecure", action="store_true", help="serve other machines without API keys")
    apply = verbs.add(
        "apply",
        "apply:apply",
        "add or update these profiles; others are left alone",
        "apply profiles/llama-8b.toml\napply profiles/*.toml --prune --dry-run",
    )
    apply.add_argument("targets", nargs="+", metavar="TARGET", help=_TARGET)
    apply.add_argument("--prune", action="store_true", help="remove profiles that are not named here")
    apply.add_argument("--dry-run", action="store_true", help="only say what would change")
    _engine(apply)
    down = verbs.add(
        "down", "down:down", "drain, stop everything, and stop the daemon", "down --yes", json=False
    )
    down.add_argument("--yes", "-y", action="store_true", help="do not ask")
    down.add_argument("--no-drain", action="store_true", help="do not wait for requests in flight")
    down.add_argument(
        "--keep-profiles", action="store_true", help="the next daemon starts what runs now (else: nothing)"
    )
    down.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="for a unit's ExecStop: do nothing where systemd restarts UNIT",
    )
    down.add_argument("--wait", type=_seconds, default=3600.0, metavar="S", help="how long to wait (3600)")
    plan = verbs.add(
        "plan",
        "plan:plan",
        "say where the replicas of a target would go, without changing anything; needs no daemon",
        "plan profiles/llama-8b.toml\nplan profiles/llama-8b.toml --inventory eight-h100.json --json",
    )
    plan.add_argument("target", metavar="TARGET", help=_TARGET)
    plan.add_argument(
        "--inventory", metavar="FILE",
        help='plan for these GPUs: {"gpus": [{"index", "uuid", "name", "memory_total_bytes", "nvlink"}]}',
    )  # fmt: skip
    _engine(plan)


def _look_verbs(verbs: _Verbs) -> None:
    status = verbs.add(
        "status", "look:status", "show GPUs, replicas and the URL", "status\nstatus --watch\nstatus --json"
    )
    status.add_argument("--watch", "-w", action="store_true", help="show it again every second")
    top = verbs.add(
        "top",
        "look:top",
        "show the load of every model and replica: queues, tokens per second, latencies, cache hits",
        "top\ntop --once\ntop --once --json",
    )
    top.add_argument("--once", action="store_true", help="show it once instead of every second")
    verbs.add("gpus", "look:gpus", "show the GPUs and who uses them", "gpus\ngpus --json")
    events = verbs.add(
        "events",
        "look:events",
        "show the state of every replica, and with -f each change",
        "events -f\nevents -f --json",
    )
    events.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
    logs = verbs.add(
        "logs",
        "look:logs",
        "show what a replica, or the daemon, has written",
        "logs demo-0 -n 50\nlogs demo-0 -f\nlogs demo-0 --previous\nlogs --daemon",
    )
    logs.add_argument("replica", nargs="?", metavar="REPLICA")
    logs.add_argument("--daemon", action="store_true", help="the daemon's own log")
    logs.add_argument(
        "--follow", "-f", action="store_true", help="go on, through restarts, until interrupted"
    )
    logs.add_argument(
        "--lines", "-n", type=_count, default=100, metavar="N", help="how many lines to begin with (100)"
    )
    logs.add_argument("--previous", action="store_true", help="the log of the start before this one")


def _act_verbs(verbs: _Verbs) -> None:
    for name, summary in (
        ("start", "start replicas that are stopped, failed or waiting"),
        ("stop", "take replicas out of rotation, wait for their requests, and stop them"),
        ("restart", "drain, stop and start replicas"),
        ("drain", "take replicas out of rotation and keep them running"),
        ("undrain", "put drained replicas back into rotation"),
    ):
        verb = verbs.add(name, "act:act", summary, f"{name} llama-8b-0\n{name} llama-8b")
        verb.add_argument(
            "replicas", nargs="+", metavar="REPLICA", help="PROFILE-N, or PROFILE for all of its replicas"
        )
    scale = verbs.add("scale", "act:scale", "change the number of replicas of a profile", "scale llama-8b 4")
    scale.add_argument("profile", metavar="PROFILE")
    scale.add_argument("count", type=_count, metavar="N")
    verbs.add("reload", "act:reload", "read the configuration, keys and profiles again", "reload")


def _other_verbs(verbs: _Verbs) -> None:
    chat = verbs.add(
        "chat",
        "chat:chat",
        "one chat completion through the router, as it is written (key: GPUSERVE_API_KEY)",
        'chat "My order is late."\nchat --model llama-8b --max-tokens 50 "Hello"\ncat letter.txt | gpuserve chat -',
    )
    chat.add_argument("text", nargs="+", metavar="TEXT", help="the message; - reads it from standard input")
    chat.add_argument(
        "--model", "-m", default="default", metavar="M", help="served name or profile (the first one)"
    )
    chat.add_argument("--max-tokens", type=_count, default=200, metavar="N", help="longest answer (200)")
    chat.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0.7")
    sim = verbs.add(
        "sim-engine", "main:main", "the look-alike of vLLM, for tests and demonstrations", "sim-engine serve MODEL --port 9000", json=False,
    )  # fmt: skip
    sim.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    completion = verbs.add(
        "completion",
        "other:completion",
        "print the completion script of a shell",
        "completion bash > ~/.local/share/bash-completion/completions/gpuserve",
        json=False,
    )
    completion.add_argument("shell", choices=_SHELLS)
    verbs.add("version", "other:version", "print the releases of this command and of the daemon", "version")


def _engine(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--engine", choices=[engine.value for engine in EngineName if engine is not EngineName.COMMAND],
        help="the engine of a quick start (vllm)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise ValueError(text)
    return value


for _kind, _name in ((_seconds, "seconds"), (_count, "number"), (_port, "port")):
    _kind.__name__ = _name  # argparse shows the name: "invalid port value: '0'"
