"""`gpuserve-tui`: attach to a running daemon. Leaving the screen never stops anything."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserve_tui.feed.events import Feed
from gpuserve_tui.model.actions import PANES
from gpuserve_tui.settings import FILE_NAME, Settings, load
from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Invalid
from gpuserved.api.roots import find_socket, from_environment

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

WAIT_S = 15.0
"""For the first data of a screenshot."""
SETTLE_S = 2.5
"""Then for trends and log lines, so that the picture shows a screen at work."""
EXAMPLE = """\
examples:
  gpuserve-tui                        the daemon that `gpuserve status` finds
  gpuserve-tui --read-only            look, and be refused every change by the daemon
  gpuserve-tui --socket /run/gpuserve/control.sock
  ssh -t gpu-host gpuserve-tui        on another machine
  gpuserve-tui --screenshot now.svg --size 120x36 --screen logs
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="gpuserve-tui",
        description="Watch and operate the replicas, GPUs and requests of a running gpuserved.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--socket", metavar="PATH", help="the daemon's control socket (default: as gpuserve finds it)"
    )
    p.add_argument("--read-only", action="store_true", help="the daemon refuses every change from here")
    p.add_argument(
        "--config", metavar="FILE", type=Path, help=f"instead of {FILE_NAME} in the configuration folder"
    )
    p.add_argument("--theme", choices=("dark", "light"), help="beats the configuration")
    p.add_argument("--ascii", action="store_true", help="bars and marks of plain characters")
    p.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    p.add_argument("--screen", choices=PANES, default="overview", help="the screen to begin with")
    p.add_argument(
        "--screenshot", metavar="FILE.svg", type=Path, help="save the screen once it has data, and exit"
    )
    p.add_argument(
        "--size", metavar="COLUMNSxROWS", type=_size, default=(120, 36), help="of a screenshot (120x36)"
    )
    return p


def _size(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    size = int(columns), int(rows)
    if not (10 <= size[0] <= 1000 and 3 <= size[1] <= 1000):
        raise ValueError(text)
    return size


_size.__name__ = "size"  # argparse shows the name: "invalid size value"


def settings_of(args: argparse.Namespace) -> Settings:
    """The file, and what the command line says otherwise.

    :raises Invalid: the file is wrong.
    """
    folder = from_environment(os.environ, uid=os.getuid()).config
    found = load(args.config or folder / FILE_NAME, required=args.config is not None)
    return Settings(
        args.theme or found.theme,
        found.ascii or args.ascii or "utf" not in (sys.stdout.encoding or "").lower(),
        found.mouse and not args.no_mouse,
        found.refresh_s,
        found.keys,
    )


def attach(args: argparse.Namespace) -> int:
    """Check that a daemon answers, then take the screen."""
    # Textual draws on stderr: redirected, the screen would go into a file.
    if not args.screenshot and not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        raise Invalid(
            "gpuserve-tui needs a terminal on stdin, stdout and stderr",
            hint="without one: gpuserve status, gpuserve top --once, gpuserve events -f",
        )
    settings = settings_of(args)
    client = ControlClient(find_socket(os.environ, args.socket), read_only=args.read_only)
    client.version()
    feed = Feed(client)
    feed.start()
    # Textual takes 0.3 s to import: not for an error message, and time enough to read the first state.
    from gpuserve_tui.app import FleetApp

    app = FleetApp(
        client, first_pane=args.screen, read_only=args.read_only, settings=settings, host=_host(client.socket_path), feed=feed,
    )  # fmt: skip
    if args.screenshot:
        import asyncio

        return asyncio.run(_screenshot(app, args.screenshot, args.size))
    code = app.run(mouse=settings.mouse)
    return code if code is not None else app.return_code or 0


def _host(path: Path) -> str:
    """What the first line calls this daemon: the machine, and the socket where it is not the usual one."""
    name = socket.gethostname().split(".")[0]
    return name if "gpuserve" in path.parts or path.parent.name == "run" else f"{name}:{path}"


async def _screenshot(app: FleetApp, path: Path, size: tuple[int, int]) -> int:
    """Run the app headless, save one picture.

    :returns: the exit code; 3: no data came.
    """
    async with app.run_test(size=size) as pilot:
        deadline = time.monotonic() + WAIT_S
        while app.state.status is None:
            if time.monotonic() > deadline:
                print(
                    f"gpuserve-tui: no data from the daemon within {WAIT_S:.0f} s; is it running? gpuserve status",
                    file=sys.stderr,
                )
                return 3
            await pilot.pause(0.05)
        await pilot.pause(SETTLE_S)
        path.write_text(app.export_screenshot(title="gpuserve-tui"), encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    :returns: the exit code: 0 done, 1 failed, 2 usage or configuration, 3 no daemon.
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
