"""Commands beside the fleet: chat, keys, sim-engine, completion, version."""

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
    keys = verbs.add(
        "keys",
        "keys:keys",
        "list, add and remove API keys, and what each may use and has used",
        "keys\nkeys add alice --rpm 60 --tpd 1000000\nkeys remove alice && gpuserve reload",
    )
    keys.add_argument("action", nargs="?", choices=("list", "add", "remove"), default="list", help="list")
    keys.add_argument("name", nargs="?", metavar="NAME", help="whose key: letters, digits and . _ @ -")
    keys.add_argument("--rpm", type=count, metavar="N", help="requests a minute")
    keys.add_argument(
        "--tpm", type=count, metavar="N", help="tokens a minute, prompt and completion together"
    )
    keys.add_argument("--tpd", type=count, metavar="N", help="tokens a day")
    keys.add_argument("--keys-file", metavar="FILE", help="another file than the daemon's")
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
