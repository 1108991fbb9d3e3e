"""sim-engine: the look-alike of vLLM in the place of this process."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpuserved.cli.parser import VerbParser


def add_arguments(parser: VerbParser) -> None:
    """What follows is the engine's own."""
    parser.examples("sim-engine serve MODEL --port 9000")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")


def run(options: argparse.Namespace) -> NoReturn:
    """`gpuserve sim-engine`."""
    become(options.arguments)


def become(arguments: Sequence[str]) -> NoReturn:
    """Run the engine with these arguments."""
    sys.stdout.flush()
    argv = [sys.executable, "-m", "gpuserved.engines.sim", *arguments]
    os.execv(argv[0], argv)  # noqa: S606 - there is no shell, and that is right
