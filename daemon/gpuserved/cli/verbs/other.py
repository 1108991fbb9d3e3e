"""Commands beside the fleet: chat, sim-engine, completion, version."""

from __future__ import annotations

import argparse

from gpuserved.cli.verbs.base import Verbs, count

SHELLS = ("bash", "zsh", "tcsh")


def add(verbs: Verbs) -> None:
    """Add them."""
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
    chat.add_argument("--max-tokens", type=count, default=200, metavar="N", help="longest answer (200)")
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
    completion.add_argument("shell", choices=SHELLS)
    verbs.add("version", "other:version", "print the releases of this command and of the daemon", "version")
