"""Commands that show: status, top, gpus, events, logs."""

from __future__ import annotations

from gpuserved.cli.moment import moment
from gpuserved.cli.verbs.base import Verbs, count


def add(verbs: Verbs) -> None:
    """Add them."""
    status = verbs.add(
        "status", "look:status", "show GPUs, replicas and the URL", "status\nstatus --watch\nstatus --json"
    )
    status.add_argument("--watch", "-w", action="store_true", help="show it again every second")
    top = verbs.add(
        "top",
        "look:top",
        "show the load of every model and replica: queues, tokens per second, latencies, cache hits",
        "top\ntop --once\ntop --once --json",
    )
    top.add_argument("--once", action="store_true", help="show it once instead of every second")
    verbs.add("gpus", "look:gpus", "show the GPUs and who uses them", "gpus\ngpus --json")
    past = verbs.add(
        "events",
        "events:events",
        "show what has happened, also under earlier daemons, and with -f each change as it happens",
        "events\nevents -n 200\nevents --since 2h\nevents --since 21:50 --json\nevents -f",
    )
    past.add_argument(
        "--follow",
        "-f",
        action="store_true",
        help="the state of every replica, then each change until interrupted",
    )
    past.add_argument(
        "--newest", "-n", type=count, metavar="N",
        help="at most N of the past, the newest ones (50; with --since all, with -f none)",
    )  # fmt: skip
    past.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        help="not before TIME: 10m, 2h, 1d (ago), 21:50, or 2026-11-24T21:50",
    )
    crash = verbs.add(
        "crash",
        "crash:crash",
        "show the last crash of a replica: exit, first tracebacks, GPUs, and what helps",
        "crash llama-8b-0\ncrash llama-8b-0 --json",
    )
    crash.add_argument("replica", metavar="REPLICA")
    logs = verbs.add(
        "logs",
        "look:logs",
        "show what a replica, or the daemon, has written",
        "logs demo-0 -n 50\nlogs demo-0 -f\nlogs demo-0 --previous\nlogs --daemon",
    )
    logs.add_argument("replica", nargs="?", metavar="REPLICA")
    logs.add_argument("--daemon", action="store_true", help="the daemon's own log")
    logs.add_argument(
        "--follow", "-f", action="store_true", help="go on, through restarts, until interrupted"
    )
    logs.add_argument(
        "--lines", "-n", type=count, default=100, metavar="N", help="how many lines to begin with (100)"
    )
    logs.add_argument("--previous", action="store_true", help="the log of the start before this one")
