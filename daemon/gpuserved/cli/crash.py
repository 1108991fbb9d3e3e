"""crash: one start that ended by itself, on one screen."""

from __future__ import annotations

import argparse
import signal
import time

from gpuserved.api.client import ControlClient
from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import NotFound
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.session import client_of, print_json, warn, width
from gpuserved.cli.text import age, gib, number, unit, wrapped
from gpuserved.host.logtail import clean


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("crash llama-8b-0", "crash llama-8b-0 --json")
    parser.add_argument("replica", metavar="REPLICA")


def run(options: argparse.Namespace) -> int:
    """`gpuserve crash`."""
    card = client_of(options).crash(options.replica)
    if options.json:
        print_json(card)
    else:
        print("\n".join(card_lines(card, width())))
    return 0


def print_head(client: ControlClient, replica: str) -> None:
    """Above the log of the start before: why it ended. One that was stopped on purpose has no card."""
    try:
        card = client.crash(replica, previous=True)
    except NotFound:
        return
    warn(f"# {clean(card.headline)}")


def card_lines(card: CrashCard, columns: int) -> list[str]:
    """The card as text."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(card.at))
    lived = f" after {age(card.at - card.started_at)}" if card.started_at is not None else ""
    lines = [f"{card.replica}  start {card.generation}  {card.engine}  {card.model}"]
    lines.append(f"ended    {at}{lived}, {_exit(card)}; now {card.state}")
    lines += wrapped(f"reason   {clean(card.message)}", columns, "         ")
    if card.lever is not None:
        lines += wrapped(f"helps    {card.lever}", columns, "         ")
    f = card.figures
    lines.append(
        f"engine   running {number(f.running)}  waiting {number(f.waiting)}  KV cache {unit(f.kv_cache_pct, '%')}"
    )
    for gpu in card.gpus:
        used = f"{gib(gpu.memory_used_bytes)}/{gib(gpu.memory_total_bytes)} GiB"
        lines.append(f"GPU {gpu.index:<4} {gpu.state}  {used}  {unit(gpu.temperature_c, ' C')}")
    for traceback in card.tracebacks:
        lines += ["", f"first traceback of {traceback.process or 'the API process'}:"]
        lines += [f"  {clean(line)}" for line in traceback.lines]
    if not card.tracebacks and card.last_lines:
        lines += ["", "last lines:", *(f"  {clean(line)}" for line in card.last_lines if line.strip())]
    lines += ["", f"log      {card.log}"]
    if card.evidence is not None:
        lines.append(f"evidence {card.evidence}")
    return lines


def _exit(card: CrashCard) -> str:
    if card.signal is not None:
        try:
            said = f"killed by {signal.Signals(card.signal).name}"
        except ValueError:
            said = f"killed by signal {card.signal}"
    else:
        said = "exit status unknown" if card.exit_code is None else f"exit code {card.exit_code}"
    return said + (", the kernel killed for memory in that moment" if card.oom_killed else "")
