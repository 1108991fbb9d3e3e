"""doctor: what on this host is in the way, and what removes it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gpuserved.api.roots import find_socket, from_environment
from gpuserved.cli.doctor import daemon, engine, gpu, machine
from gpuserved.cli.doctor.base import FAIL, OK, WARN, Check, Finding, Host, run_all
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.session import print_json, width
from gpuserved.cli.text import wrapped
from gpuserved.host.logtail import clean

CHECKS: tuple[tuple[str, Check], ...] = (
    ("gpu", gpu.check),
    ("vllm", engine.vllm),
    ("hub", engine.hub),
    ("configuration", daemon.configuration),
    ("daemon", daemon.daemon),
    ("port", daemon.port),
    ("leftovers", daemon.leftovers),
    ("folders", daemon.roots),
    ("disk", machine.disk),
    ("shm", machine.shared_memory),
    ("limits", machine.limits),
    ("kernel", machine.kernel),
    ("clock", machine.clock),
    ("service", daemon.service),
)
_COLOURS = {OK: "32", WARN: "33", FAIL: "31"}


def add_arguments(parser: VerbParser) -> None:
    """None of its own."""
    parser.examples("doctor", "doctor --json")


def run(options: argparse.Namespace) -> int:
    """`gpuserve doctor`: 0, or 1 where something fails."""
    host = Host(
        os.environ, from_environment(os.environ, uid=os.getuid()), find_socket(os.environ, options.socket)
    )
    found = run_all(CHECKS, host)
    failed = sum(one.level == FAIL for one in found)
    if options.json:
        print_json({"ok": failed == 0, "checks": found})
    else:
        _show(found)
    sys.stdout.flush()
    return 1 if failed else 0


def _show(found: Sequence[Finding]) -> None:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in found:
        mark = f"\x1b[{_COLOURS[one.level]}m{one.level:4}\x1b[0m" if colour else f"{one.level:4}"
        first, *rest = wrapped(clean(one.fact), max(40, width() - 20), "")
        print(f"{mark}  {one.check:13} {first}")
        for line in rest:
            print(f"{'':20}{line}")
        if one.fix is not None:
            print(f"{'':20}-> {clean(one.fix)}")
    counts = {level: sum(one.level == level for one in found) for level in (OK, WARN, FAIL)}
    print(f"\n{counts[OK]} ok, {counts[WARN]} to be known, {counts[FAIL]} in the way")
