"""completion: the script that lets a shell complete commands and flags."""

from __future__ import annotations

import argparse

from gpuserved.cli.parser import VERBS, VerbParser, build

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("completion bash > ~/.local/share/bash-completion/completions/gpuserve")
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    """`gpuserve completion`."""
    import shtab

    whole = build()
    (commands,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - as shtab does
    for name in VERBS:
        commands.choices[name].declare()
    print(shtab.complete(whole, shell=options.shell))
    return 0
