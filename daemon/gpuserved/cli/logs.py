"""logs: what a replica, or the daemon, has written."""

from __future__ import annotations

import argparse

import msgspec

from gpuserved.api.errors import Conflict, Invalid
from gpuserved.cli.crash import print_head
from gpuserved.cli.parser import VerbParser, count
from gpuserved.cli.session import client_of
from gpuserved.cli.text import last_state


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("logs demo-0 -n 50", "logs demo-0 -f", "logs demo-0 --previous", "logs --daemon")
    parser.add_argument("replica", nargs="?", metavar="REPLICA")
    parser.add_argument("--daemon", action="store_true", help="the daemon's own log")
    parser.add_argument(
        "--follow", "-f", action="store_true", help="go on, through restarts, until interrupted"
    )
    parser.add_argument(
        "--lines", "-n", type=count, default=100, metavar="N", help="how many lines to begin with (100)"
    )
    parser.add_argument("--previous", action="store_true", help="the log of the start before this one")


def run(options: argparse.Namespace) -> int:
    """`gpuserve logs`."""
    if (options.replica is None) != options.daemon:
        raise Invalid("name one replica, or --daemon", "gpuserve status lists the replicas")
    if options.follow and options.previous:
        raise Conflict("a log of the past cannot be followed", "use --previous or -f, not both")
    client = client_of(options)
    if options.previous and not options.json:
        print_head(client, options.replica)
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
