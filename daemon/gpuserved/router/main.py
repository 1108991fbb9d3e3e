"""The router's program."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

import uvloop

from gpuserved.router.accesslog import AccessLog
from gpuserved.router.counts import Counts
from gpuserved.router.server import Router


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpuserved.router",
        description="The data plane: one URL over all replicas. Started by its shim, which holds the listening socket.",
        epilog="example: python -m gpuserved.router --fd 3 --table RUN/routing.json --control RUN/router/ctl.sock",
    )
    parser.add_argument("--fd", type=int, required=True, help="inherited listening TCP socket")
    parser.add_argument("--table", type=Path, required=True, help="the routing table's file")
    parser.add_argument("--control", required=True, help="path of the control socket to make")
    parser.add_argument(
        "--access-log",
        type=Path,
        help="write a JSON line for each request to this file (default: no access log)",
    )
    parser.add_argument(
        "--counts", type=Path, help="file of the in-flight counts that the routers on this socket share"
    )
    parser.add_argument("--row", type=int, default=0, help="this router's row in it (default 0)")
    return parser.parse_args(argv)


async def _serve(sock: socket.socket, wanted: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    access_log = None if wanted.access_log is None else AccessLog(wanted.access_log)
    counts = None if wanted.counts is None else Counts(wanted.counts, wanted.row)
    await Router(sock, wanted.table, wanted.control, access_log=access_log, counts=counts).run(stop)


def main(argv: list[str] | None = None) -> int:
    """Run one router until SIGTERM or SIGINT; 2: the listening socket is not one."""
    wanted = _arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        sock = socket.socket(fileno=wanted.fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        print(f"gpuserved.router: --fd {wanted.fd}: {error}", file=sys.stderr)
        return 2
    if not listening:
        print(f"gpuserved.router: --fd {wanted.fd} is not a listening socket", file=sys.stderr)
        return 2
    sock.setblocking(False)
    uvloop.run(_serve(sock, wanted))
    return 0
