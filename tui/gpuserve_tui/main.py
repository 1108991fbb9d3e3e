"""`gpuserve-tui`: attach to a running daemon. Leaving the screen never stops anything."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuserved.api.client import ControlClient, find_socket
from gpuserved.api.errors import GpuserveError, Invalid

SCREENSHOT_SIZE = (116, 26)
EXAMPLE = """\
examples:
  gpuserve-tui                        the daemon that `gpuserve status` finds
  gpuserve-tui --socket /run/gpuserve/control.sock
  ssh -t gpu-host gpuserve-tui        on another machine
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="gpuserve-tui",
        description="Watch the replicas, GPUs and requests of a running gpuserved.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--socket", metavar="PATH", help="the daemon's control socket (default: as gpuserve finds it)"
    )
    p.add_argument("--read-only", action="store_true", help="offer no key that changes anything")
    p.add_argument(
        "--screenshot", metavar="FILE.svg", type=Path, help="save the screen once it has data, and exit"
    )
    return p


def attach(args: argparse.Namespace) -> int:
    """Check that a daemon answers, then take the screen."""
    if not args.screenshot and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Invalid(
            "gpuserve-tui needs a terminal", hint="without one: gpuserve status, gpuserve events -f"
        )
    client = ControlClient(find_socket(os.environ, args.socket))
    client.status()
    # Textual takes 0.3 s to import: not for an error message.
    from gpuserve_tui.app import FleetApp

    app = FleetApp(client, read_only=args.read_only, screenshot=args.screenshot)
    code = app.run(headless=True, size=SCREENSHOT_SIZE) if args.screenshot else app.run()
    return code if code is not None else app.return_code or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    :returns: the exit code: 0 done, 1 failed, 2 usage, 3 no daemon.
    """
    args = parser().parse_args(argv)
    try:
        return attach(args)
    except GpuserveError as error:
        print(f"gpuserve-tui: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
