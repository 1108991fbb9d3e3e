"""start, stop, restart, drain, undrain, scale, quarantine, release, reload."""

from __future__ import annotations

import argparse
import time

from gpuserved.api.gpus import GpusRequest, GpusResult
from gpuserved.api.types import ActionResult, ApplyResult, ReplicasRequest, ScaleRequest
from gpuserved.cli.rollout import wait_rolled
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.host.logtail import clean


def act(options: argparse.Namespace) -> int:
    """One verb on some replicas."""
    client = client_of(options)
    since = time.time()
    done = _shown(client.act(options.verb, ReplicasRequest(replicas=options.replicas)), as_json=options.json)
    if options.verb == "restart" and not options.no_wait:
        wait_rolled(client, frozenset(options.replicas), since)
    return done


def scale(options: argparse.Namespace) -> int:
    """`gpuserve scale`."""
    request = ScaleRequest(profile=options.profile, replicas=options.count)
    return _shown(client_of(options).scale(request), as_json=options.json)


def quarantine(options: argparse.Namespace) -> int:
    """`gpuserve quarantine`."""
    request = GpusRequest(gpus=options.gpus, reason=options.reason)
    return _show_gpus(client_of(options).quarantine(request), as_json=options.json)


def release(options: argparse.Namespace) -> int:
    """`gpuserve release`."""
    return _show_gpus(client_of(options).release(GpusRequest(gpus=options.gpus)), as_json=options.json)


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


def reload(options: argparse.Namespace) -> int:
    """`gpuserve reload`."""
    result = client_of(options).reload()
    print_changes(result, as_json=options.json)
    return 0


def print_changes(result: ApplyResult, *, as_json: bool, would: bool = False) -> None:
    """What `apply` and its like did."""
    if as_json:
        print_json(result)
        return
    for warning in result.warnings:
        warn(f"warning: {clean(warning.message)}")
    changes = [change for change in result.changes if change.action != "keep"]
    for change in changes:
        why = f"  ({clean(change.why)})" if change.why else ""
        print(f"{'would ' if would else ''}{change.action} {clean(change.replica)}{why}")
    if not changes:
        print("nothing to change")


def _shown(result: ActionResult, *, as_json: bool) -> int:
    if as_json:
        print_json(result)
    else:
        for replica, state in sorted(result.replicas.items()):
            print(f"{clean(replica)}  {state}")
    for replica, why in sorted(result.refused.items()):
        warn(f"{clean(replica)}: refused: {clean(why)}")
    return 1 if result.refused else 0
