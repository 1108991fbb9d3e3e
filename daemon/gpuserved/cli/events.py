"""events: what has happened, and with -f what happens."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from gpuserved.api.errors import Unavailable
from gpuserved.api.types import FleetEvent, ReplicaView
from gpuserved.cli.parser import VerbParser, count
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.host.logtail import clean

SHOWN = 50
"""Without -n and --since."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment(text: str) -> float:
    """Unix seconds of a time as operators type it; the type of --since."""
    return moment_at(text, time.time())


moment.__name__ = "time"  # argparse shows the name


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "events", "events -n 200", "events --since 2h", "events --since 21:50 --json", "events -f"
    )
    parser.add_argument(
        "--follow",
        "-f",
        action="store_true",
        help="the state of every replica, then each change until interrupted",
    )
    parser.add_argument(
        "--newest", "-n", type=count, metavar="N",
        help="at most N of the past, the newest ones (50; with --since all, with -f none)",
    )  # fmt: skip
    parser.add_argument(
        "--since", type=moment, metavar="TIME",
        help="not before TIME: 10m, 2h, 1d (ago), 21:50, or 2026-11-24T21:50",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """`gpuserve events`."""
    client = client_of(options)
    asked = options.newest is not None or options.since is not None
    newest = options.newest if asked else SHOWN
    if not options.follow:
        found = client.recent_events(newest=newest, since=options.since).events
        _print(found, options)
        if not found and not options.json:
            warn("nothing has happened" + (" since then" if asked else ""))
        return 0
    stream = client.events()
    try:
        for number, event in enumerate(stream):
            if number == 0 and asked:
                past = client.recent_events(newest=newest, since=options.since).events
                # What happens from now on comes with the stream.
                _print([one for one in past if one.at <= event.at], options)
            _print([event], options)
    except KeyboardInterrupt:
        return 0
    finally:
        stream.close()  # type: ignore[attr-defined]  # every Iterator here is a generator
    warn("the daemon has gone")
    return Unavailable.exit_code


def _print(found: Iterable[FleetEvent], options: argparse.Namespace) -> None:
    for event in found:
        if options.json:
            print_json(event)
        else:
            for line in event_lines(event):
                print(line, flush=True)


def event_lines(event: FleetEvent) -> list[str]:
    """What a person wants to read of an event; telemetry is for screens."""
    at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at))
    if event.kind == "snapshot" and event.status is not None:
        return [f"{at}  {_state(replica)}" for replica in event.status.replicas] or [f"{at}  no replicas"]
    if event.replica is not None:
        return [f"{at}  {_state(event.replica, event.previous_state)}"]
    return [f"{at}  {clean(event.message)}"] if event.message else []


def _state(replica: ReplicaView, previous: str | None = None) -> str:
    came = f"{previous} -> " if previous and previous != replica.state else ""
    why = f"  {clean(replica.reason)}" if replica.reason else ""
    return f"{clean(replica.id)}  {came}{replica.state}{why}"


def moment_at(text: str, now: float) -> float:
    """Unix seconds of `10m` (ago), `21:50` (the last time it was), `2026-11-24 21:50`, or Unix seconds.

    :param now: Unix seconds.
    :raises argparse.ArgumentTypeError: it is none of these.
    """
    import re
    from datetime import datetime

    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago:
        return now - float(ago[1]) * _UNITS_S[ago[2]]
    if re.fullmatch(r"\d{9,10}(?:\.\d+)?", text):
        return float(text)
    clock = re.fullmatch(r"\d\d:\d\d(?::\d\d)?", text)
    today = datetime.fromtimestamp(now)
    try:
        found = datetime.fromisoformat(f"{today.date()}T{text}" if clock else text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: 10m, 2h, 1d (ago), 21:50, or 2026-11-24T21:50"
        ) from None
    return found - 86_400 if clock and found > now else found
