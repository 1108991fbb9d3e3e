"""status, top, gpus, logs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import msgspec

from gpuserved.api.errors import Conflict, Invalid, TimedOut, Unavailable
from gpuserved.api.types import Status
from gpuserved.cli.crash import head_of_crash
from gpuserved.cli.session import client_of, notice, print_json, width
from gpuserved.cli.text import gpu_lines, last_state, status_lines
from gpuserved.cli.toptext import top_lines

_WATCH_S = 1.0
_CLEAR = "\x1b[H\x1b[J"


def status(options: argparse.Namespace) -> int:
    """`gpuserve status`."""
    return _shown(options, status_lines, lambda found: found, again=options.watch)


def top(options: argparse.Namespace) -> int:
    """`gpuserve top`."""
    return _shown(options, top_lines, load_of, again=not options.once)


def load_of(status: Status) -> dict[str, object]:
    """What `top --json` prints: the figures of load alone."""
    return {
        "router": status.router,
        "load": status.load,
        "models": status.models,
        "replicas": [
            {
                "id": replica.id,
                "model": replica.model,
                "state": replica.state,
                "in_flight": replica.in_flight,
                "running": replica.running,
                "waiting": replica.waiting,
                "kv_cache_pct": replica.kv_cache_pct,
                "load": replica.load,
            }
            for replica in status.replicas
        ],
    }


def _shown(
    options: argparse.Namespace,
    as_lines: Callable[[Status, int], list[str]],
    as_json: Callable[[Status], object],
    *,
    again: bool,
) -> int:
    """Show the status once, or again and again."""
    client = client_of(options)
    found = client.status()  # a daemon that never was is an error, one that goes away later is news
    if again:
        return _watch(options, as_lines, as_json)
    if options.json:
        print_json(as_json(found))
    else:
        print("\n".join(as_lines(found, width())))
    notice(client)
    return 0


def _watch(
    options: argparse.Namespace,
    as_lines: Callable[[Status, int], list[str]],
    as_json: Callable[[Status], object],
) -> int:
    """Show it every second; a daemon that restarts is waited for."""
    terminal = sys.stdout.isatty()
    try:
        while True:
            try:
                found = client_of(options).status()
            except (Unavailable, TimedOut) as error:
                body = msgspec.json.encode(error.body()).decode()
                lines = [body if options.json else f"{error.message}; waiting for it"]
            else:
                as_one = msgspec.json.encode(as_json(found)).decode() if options.json else ""
                lines = [as_one] if options.json else as_lines(found, width())
            clear = _CLEAR if terminal and not options.json else ""
            print(clear + "\n".join(lines), flush=True)
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return 0


def gpus(options: argparse.Namespace) -> int:
    """`gpuserve gpus`."""
    found = client_of(options).status().gpus
    if options.json:
        print_json({"gpus": found})
    elif found:
        print("\n".join(gpu_lines(found, width())))
    else:
        print("no GPUs on this host, or none that the daemon may see")
    return 0


def logs(options: argparse.Namespace) -> int:
    """`gpuserve logs`."""
    if (options.replica is None) != options.daemon:
        raise Invalid("name one replica, or --daemon", "gpuserve status lists the replicas")
    if options.follow and options.previous:
        raise Conflict("a log of the past cannot be followed", "use --previous or -f, not both")
    client = client_of(options)
    if options.previous and not options.json:
        head_of_crash(client, options.replica)
    lines = client.logs(
        options.replica, lines=options.lines, previous=options.previous, follow=options.follow
    )
    try:
        for line in lines:
            shown = last_state(line)
            print(
                msgspec.json.encode({"line": shown}).decode() if options.json else shown, flush=options.follow
            )
    except KeyboardInterrupt:
        return 0
    return 0
