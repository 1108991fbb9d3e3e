"""What a command has at hand: the daemon's address and how to print."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from gpuserved.api.client import ControlClient
from gpuserved.api.roots import find_socket


def client_of(options: argparse.Namespace) -> ControlClient:
    """A client for the daemon that the options and the environment mean."""
    return ControlClient(find_socket(os.environ, options.socket))


def print_json(value: object) -> None:
    """JSON on stdout, one object."""
    print(msgspec.json.encode(value).decode(), flush=True)


def warn(text: str) -> None:
    """A line for people, beside the data."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def notice(client: ControlClient) -> None:
    """Say that daemon and command are of different releases, where they are."""
    if client.notice:
        warn(f"note: {client.notice}")


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def on_terminal() -> bool:
    """True where somebody watches and can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def shown_path(path: Path) -> str:
    """A path as short as it can be pasted."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
