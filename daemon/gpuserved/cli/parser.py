"""The parser of `gpuserve`: the commands of `verbs/`. The code of a command is named by text and imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gpuserved
from gpuserved.cli.verbs import act, files, look, other, run, traffic
from gpuserved.cli.verbs.base import Parser, Verbs

Command = Callable[[argparse.Namespace], int]


def load(where: str) -> Command:
    """The function that `module:function` names."""
    import importlib

    module, function = where.split(":")
    found: Any = getattr(importlib.import_module(f"gpuserved.cli.{module}"), function)
    command: Command = found
    return command


def build() -> argparse.ArgumentParser:
    """The whole parser."""
    parser = Parser(
        prog="gpuserve",
        description="One machine, many GPUs, one URL.",
        epilog="exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon, 4 refused, 5 timed out",
    )
    parser.add_argument("--version", action="version", version=f"gpuserve {gpuserved.__version__}")
    parser.add_argument("--socket", metavar="PATH", default=None, help="the daemon's control socket")
    verbs = Verbs(parser)
    for group in (run, look, act, files, traffic, other):
        group.add(verbs)
    return parser
