"""down: drain, stop everything and the daemon."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, TimedOut, Unavailable
from gpuserved.cli.parser import VerbParser, seconds
from gpuserved.cli.session import client_of, on_terminal, warn

_POLL_S = 0.1
_SYSTEMD_S = 10.0
_EXIT_WAIT_S = 15.0
"""From the control socket's end to the process's."""


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("down --yes")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument("--no-drain", action="store_true", help="do not wait for requests in flight")
    parser.add_argument(
        "--keep-profiles", action="store_true", help="the next daemon starts what runs now (else: nothing)"
    )
    parser.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="for a unit's ExecStop: do nothing where systemd restarts UNIT",
    )
    parser.add_argument("--wait", type=seconds, default=3600.0, metavar="S", help="how long to wait (3600)")


def run(options: argparse.Namespace) -> int:
    """`gpuserve down`: returns once everything is gone."""
    if options.unless_restarting and not is_stopping(options.unless_restarting):
        warn(f"{options.unless_restarting} is not being stopped for good: replicas go on")
        return 0
    client = client_of(options)
    status = client.status()
    if not options.yes and on_terminal():
        count = len(status.replicas)
        print(
            f"Stop {count} replica{'s' if count != 1 else ''} and the daemon at {status.endpoint}? [y/N] ",
            end="",
            flush=True,
        )
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            warn("nothing was stopped")
            return 1
    client.shutdown(drain=not options.no_drain, forget=not options.keep_profiles)
    wait_gone(client, status.supervisor.pid, options.wait)
    return 0


def is_stopping(unit: str) -> bool:
    """Is systemd about to stop `unit` for good? A restart is a stop, too, while its first half runs; only the job tells them
    apart (systemd.service(5), ExecStop). Where systemd does not answer, replicas are worth more than a tidy stop: False.
    """
    command = ["systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMD_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    jobs = [line.split() for line in done.stdout.splitlines()]
    return any(len(job) > 2 and job[1:3] == [unit, "stop"] for job in jobs)


def wait_gone(client: ControlClient, pid: int, limit_s: float) -> None:
    """Wait until the daemon has stopped everything and itself.

    :raises TimedOut: it goes on stopping.
    """
    deadline = time.monotonic() + limit_s
    shown = -1
    while True:
        try:
            left = sum(replica.state not in {"STOPPED", "FAILED"} for replica in client.status().replicas)
        except Unavailable:
            break
        except GpuserveError:
            left = shown
        if left != shown and left > 0:
            warn(f"stopping: {left} left")
        shown = left
        if time.monotonic() > deadline:
            raise TimedOut(
                f"not everything has stopped within {limit_s:g} s; it goes on", "look with gpuserve status"
            )
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _EXIT_WAIT_S
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _alive(pid: int) -> bool:
    """True while the process runs; a zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[:1]
    except OSError:
        return False
    return state != [b"Z"] and os.path.exists(f"/proc/{pid}")
