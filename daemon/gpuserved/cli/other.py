"""completion, version."""

from __future__ import annotations

import argparse

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.cli.session import client_of, print_json


def completion(options: argparse.Namespace) -> int:
    """`gpuserve completion`."""
    import shtab

    from gpuserved.cli.parser import build

    print(shtab.complete(build(), shell=options.shell))
    return 0


def version(options: argparse.Namespace) -> int:
    """`gpuserve version`: works without a daemon."""
    try:
        daemon = client_of(options).version().version
    except GpuserveError:
        daemon = None
    if options.json:
        print_json({"version": gpuserved.__version__, "daemon": daemon})
    else:
        print(f"gpuserve {gpuserved.__version__}, daemon {daemon or 'not running'}")
    return 0
