"""upgrade: the installed version takes over from the running one, under load."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import gpuserved
from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Internal, NotFound, Refused, TimedOut, Unavailable
from gpuserved.api.types import RouterProcess, Status, UpgradeRequest
from gpuserved.cli.parser import VerbParser, seconds
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.cli.version import Part, part_lines, parts_of
from gpuserved.host.logtail import clean

_POLL_S = 0.1


@dataclass(frozen=True)
class Run:
    """One upgrade."""

    client: ControlClient
    before: Status
    deadline: float
    say: Callable[[str], None]


class RolledBack(Internal):
    """The new version did not come up, and the old one goes on."""


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("upgrade --dry-run", "upgrade", "upgrade --force --json")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="only show which process runs which version, and what would be replaced",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace daemon and routers although they are of this version"
    )
    parser.add_argument(
        "--wait", type=seconds, default=180.0, metavar="S",
        help="how long to wait for daemon and routers (180); the old routers' last requests are not waited for",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """`gpuserve upgrade`."""
    client = client_of(options)
    before = client.status()
    parts = parts_of(before, gpuserved.__version__)
    due = options.force or any(part.replaced for part in parts)
    if options.dry_run or not due:
        return _show(parts, options, outcome="dry_run" if due else "nothing")
    run = Run(client, before, time.monotonic() + options.wait, _silent if options.json else warn)
    hand_over = options.force or before.supervisor.version != gpuserved.__version__
    if hand_over:
        _daemon(run)
    after = _routers(run, handed_over=hand_over, force=options.force)
    run.say(_shims(after))
    if options.json:
        shown = parts_of(after, gpuserved.__version__)
        print_json({"outcome": "done", "from": before.version, "to": after.version, "processes": shown})
    return 0


def _silent(line: str) -> None:
    del line


def _show(parts: list[Part], options: argparse.Namespace, *, outcome: str) -> int:
    installed = gpuserved.__version__
    if options.json:
        print_json({"outcome": outcome, "to": installed, "processes": parts})
        return 0
    if outcome == "nothing":
        print(
            f"nothing to upgrade: daemon and routers are gpuserve {installed} (--force replaces them all the same)"
        )
    else:
        print(f"gpuserve {installed} of {sys.executable} would take over; no replica is restarted")
    print("\n".join(part_lines(parts, forced=options.force)))
    return 0


def _daemon(run: Run) -> None:
    """Let the running daemon hand over, and wait until it has.

    :raises RolledBack: it goes on itself.
    """
    old, installed = run.before.supervisor, gpuserved.__version__
    run.say(f"daemon: {old.version}, PID {old.pid}: checking that {installed} can take over")
    asked_at = time.time()
    try:
        accepted = run.client.upgrade(UpgradeRequest(python=sys.executable, pythonpath=_pythonpath()))
    except NotFound:
        raise Refused(
            f"the running daemon ({old.version}) is from before gpuserve upgrade",
            f"kill -TERM {old.pid}; gpuserve up: replicas and routers go on meanwhile, and the new daemon adopts them",
        ) from None
    if accepted.version != installed:
        warn(f"warning: the daemon found gpuserve {accepted.version} there, and this command is {installed}")
    new = _wait_daemon(run, asked_at)
    kept = {row.id: row.pid for row in run.before.replicas if row.pid is not None}
    now = {row.id: row.pid for row in new.replicas}
    adopted = sum(now.get(name) == pid for name, pid in kept.items())
    run.say(
        f"daemon: {new.version}, PID {new.supervisor.pid} has taken over, {adopted} of {len(kept)} replicas adopted"
    )


def _pythonpath() -> str | None:
    """Ours, with folders that mean the same from another working folder."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(os.path.abspath(part) for part in given.split(os.pathsep) if part) or None


def _wait_daemon(run: Run, asked_at: float) -> Status:
    old = run.before.supervisor.pid
    while True:
        try:
            status = run.client.status()
            failed = status.supervisor.failed_upgrade
            if status.supervisor.pid != old:
                return status
            if failed is not None and failed.at >= asked_at:
                raise RolledBack(
                    f"gpuserve {failed.version} did not take over; {status.version} (PID {old}) goes on, and so do "
                    f"replicas and routers: {failed.reason}",
                    "its log: gpuserve logs --daemon, or journalctl -u gpuserved",
                )
        except (Unavailable, TimedOut):
            pass
        _in_time(run, "the daemon")
        time.sleep(_POLL_S)


def _in_time(run: Run, what: str) -> None:
    """:raises TimedOut: the time of `--wait` is over."""
    if time.monotonic() > run.deadline:
        raise TimedOut(f"{what} has not been replaced in time", "it may go on: gpuserve status shows it")


def _routers(run: Run, *, handed_over: bool, force: bool) -> Status:
    """Wait until all routers that take connections are of the new version.

    :param handed_over: the daemon has just started: it replaces routers of another version by itself.
    :raises Internal: they could not be replaced.
    """
    before = {each.generation for each in run.before.router.processes if not each.draining}
    if not handed_over:
        run.client.replace_routers()
    while True:
        status = run.client.status()
        serving = [each for each in status.router.processes if not each.draining]
        fresh = bool(serving) and all(each.version == status.version for each in serving)
        replaced = not before & {each.generation for each in serving}
        if fresh and (replaced or not force):
            _say_routers(run, status)
            return status
        if status.router.trouble:
            raise Internal(clean(status.router.trouble), "gpuserve upgrade tries again")
        if fresh:
            run.client.replace_routers()
        _in_time(run, "a router")
        time.sleep(_POLL_S)


def _say_routers(run: Run, status: Status) -> None:
    old = {each.router: each for each in run.before.router.processes if not each.draining}
    for each in status.router.processes:
        if each.draining:
            continue
        former = old.get(each.router)
        came = f"{_named(former)} -> " if former is not None and former.pid != each.pid else ""
        run.say(f"router {each.router}: {came}{_named(each)}")
    for each in status.router.processes:
        if each.draining:
            count = "-" if each.in_flight is None else each.in_flight
            run.say(
                f"router {each.router}: PID {each.pid} ends after its last request; {count} in flight now"
            )


def _named(each: RouterProcess) -> str:
    return f"{each.version or 'an older version'}, PID {each.pid}"


def _shims(status: Status) -> str:
    old = [row for row in status.replicas if row.pid is not None and row.shim_version != status.version]
    if not old:
        return "shims of replicas: all of this version"
    return f"shims of replicas: {len(old)} older, which go on until their replica's next start"
