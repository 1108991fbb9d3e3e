"""start, stop, restart, drain, undrain, scale, quarantine, release: what an operator does to replicas and GPUs."""

from __future__ import annotations

import argparse
import time

from gpuserved.api.types import ActionResult, GpusRequest, GpusResult, ReplicasRequest, ScaleRequest
from gpuserved.cli.parser import VerbParser, add_no_wait, count
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.host.logtail import clean


def add_arguments(parser: VerbParser) -> None:
    """Of the verb that was typed."""
    verb = parser.verb
    if verb == "scale":
        parser.examples("scale llama-8b 4")
        parser.add_argument("profile", metavar="PROFILE")
        parser.add_argument("count", type=count, metavar="N")
    elif verb in {"quarantine", "release"}:
        parser.add_argument(
            "gpus", nargs="+", metavar="GPU", help="its index or UUID, as gpuserve gpus shows it"
        )
        if verb == "release":
            parser.examples("release 3")
            return
        parser.examples(
            "quarantine 3", 'quarantine 3 --reason "fan is loud, ticket 812"', "quarantine GPU-8f2c --json"
        )
        parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks next")
    else:
        parser.examples(f"{verb} llama-8b-0", f"{verb} llama-8b")
        parser.add_argument(
            "replicas", nargs="+", metavar="REPLICA", help="PROFILE-N, or PROFILE for all of its replicas"
        )
        if verb == "restart":
            add_no_wait(parser)


def run(options: argparse.Namespace) -> int:
    """One of these verbs; 1 where a replica's state does not know it."""
    client = client_of(options)
    if options.verb == "scale":
        request = ScaleRequest(profile=options.profile, replicas=options.count)
        return _show(client.scale(request), as_json=options.json)
    if options.verb == "quarantine":
        asked = GpusRequest(gpus=options.gpus, reason=options.reason)
        return _show_gpus(client.quarantine(asked), as_json=options.json)
    if options.verb == "release":
        return _show_gpus(client.release(GpusRequest(gpus=options.gpus)), as_json=options.json)
    since = time.time()
    done = _show(client.act(options.verb, ReplicasRequest(replicas=options.replicas)), as_json=options.json)
    if options.verb == "restart" and not options.no_wait:
        from gpuserved.cli.waiting import wait_rolled

        wait_rolled(client, frozenset(options.replicas), since)
    return done


def _show_gpus(result: GpusResult, *, as_json: bool) -> int:
    if as_json:
        print_json(result)
        return 0
    for gpu in result.gpus:
        print(f"GPU {gpu.index}  {gpu.state}" + (f"  {clean(gpu.reason)}" if gpu.reason else ""))
    for replica, what in sorted(result.replicas.items()):
        print(f"{clean(replica)}  {clean(what)}")
    for note in result.notes:
        warn(clean(note))
    return 0


def _show(result: ActionResult, *, as_json: bool) -> int:
    if as_json:
        print_json(result)
    else:
        for replica, state in sorted(result.replicas.items()):
            print(f"{clean(replica)}  {state}")
    for replica, why in sorted(result.refused.items()):
        warn(f"{clean(replica)}: refused: {clean(why)}")
    return 1 if result.refused else 0
