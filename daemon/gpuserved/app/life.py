"""The daemon's life: it serves until it is told to end, or until another version has taken over."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path

from gpuserved.api.processes import FailedUpgrade
from gpuserved.api.roots import Roots
from gpuserved.app.daemon import serve
from gpuserved.app.succession import hand_over
from gpuserved.config.daemon import DaemonConfig
from gpuserved.fleet.store import check_readable
from gpuserved.host import systemd
from gpuserved.host.failpoint import reach

log = logging.getLogger(__name__)


def live(roots: Roots, config: DaemonConfig, args: argparse.Namespace, path: Path | None) -> int:
    """Serve; the exit code.

    :raises GpuserveError: it could not start; nothing was changed.
    """
    service = systemd.Service.take()
    with contextlib.closing(systemd.PortStore(service.address, systemd.passed_descriptors())) as store:
        return _lives(roots, config, args, path, service, store)


def _lives(
    roots: Roots,
    config: DaemonConfig,
    args: argparse.Namespace,
    path: Path | None,
    service: systemd.Service,
    store: systemd.PortStore,
) -> int:
    failed: FailedUpgrade | None = None
    while True:
        successor = asyncio.run(serve(roots, config, args, path, service, store, failed))
        if isinstance(successor, int):
            return successor
        reach("upgrade.freed")
        why = hand_over(successor, roots, service)
        if why is None:
            log.info("gpuserved %s has taken over", successor.version)
            return 0
        log.error("gpuserved %s did not take over, this version goes on: %s", successor.version, why)
        service = replace(service, predecessor_fd=None)  # that is over
        failed = FailedUpgrade(at=time.time(), version=successor.version, reason=why)


def check(roots: Roots) -> None:
    """Whether this version can work with the state on disk.

    :raises Invalid: a newer one wrote it.
    """
    check_readable(roots.state / "fleet.json")
