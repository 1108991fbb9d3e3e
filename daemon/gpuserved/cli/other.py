"""completion, version."""

from __future__ import annotations

import argparse

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.cli.session import client_of, print_json
from gpuserved.cli.versions import differing, part_lines, parts_of


def completion(options: argparse.Namespace) -> int:
    """`gpuserve completion`."""
    import shtab

    from gpuserved.cli.parser import build

    print(shtab.complete(build(), shell=options.shell))
    return 0


def version(options: argparse.Namespace) -> int:
    """`gpuserve version`: works without a daemon."""
    client, daemon, parts, mixed = client_of(options), None, [], None
    try:
        daemon = client.version().version
        status = client.status()
        parts, mixed = parts_of(status, gpuserved.__version__), differing(status)
    except GpuserveError:
        pass  # no daemon, or one that answers the first question alone
    if options.json:
        print_json({"version": gpuserved.__version__, "daemon": daemon, "processes": parts})
        return 0
    print(f"gpuserve {gpuserved.__version__}, daemon {daemon or 'not running'}")
    if mixed is not None or daemon not in {None, gpuserved.__version__}:
        print("\n".join(part_lines(parts)))
    return 0
