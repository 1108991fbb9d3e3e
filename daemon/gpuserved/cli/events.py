"""events: what has happened, and with -f what happens."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from gpuserved.api.errors import Unavailable
from gpuserved.api.types import FleetEvent, ReplicaView
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.host.logtail import clean

SHOWN = 50
"""Without -n and --since."""


def events(options: argparse.Namespace) -> int:
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
