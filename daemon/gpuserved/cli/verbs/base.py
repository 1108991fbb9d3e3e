"""What every file of commands uses: how a command is added, and the kinds of its values."""

from __future__ import annotations

import argparse
from typing import NoReturn

from gpuserved.core.profile import EngineName

TARGET = "a profile's NAME.toml, a model's folder, a profile's name, or a hub id OWNER/NAME (quick start)"


class Parser(argparse.ArgumentParser):
    """Complains in one line and points at --help."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2, as for every wrong usage."""
        self.exit(2, f"{self.prog}: {message}\n  see {self.prog} --help\n")


class Verbs:
    """Adds commands that share the common options."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._into = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=Parser)

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


def engine(verb: argparse.ArgumentParser) -> None:
    """--engine of a quick start."""
    verb.add_argument(
        "--engine", choices=[engine.value for engine in EngineName if engine is not EngineName.COMMAND],
        help="the engine of a quick start (vllm)",
    )  # fmt: skip


def no_wait(verb: argparse.ArgumentParser) -> None:
    """--no-wait of what begins a rolling change."""
    verb.add_argument(
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
