"""The composition root: what starts in which order, what ends in which, and who takes over."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import Roots
from gpuserved.api.routing import Tls
from gpuserved.api.types import ApplyRequest, FailedUpgrade
from gpuserved.app.lifecycle import Lifecycle, Stop, exit_code, farewell
from gpuserved.app.port import open_port
from gpuserved.app.succession import Successor, hand_over
from gpuserved.config.api_keys import read_keys
from gpuserved.config.daemon import DaemonConfig, find_config, load_daemon_config, read_hf_token
from gpuserved.config.target import resolve
from gpuserved.control.server import ControlServer
from gpuserved.fleet.persistence import FILE_NAME, check_readable
from gpuserved.fleet.queries import About
from gpuserved.fleet.service import Daemon, Fleet
from gpuserved.fleet.settings import MEMORY_BACK_S, CurrentSettings, Settings
from gpuserved.host import systemd
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import DaemonLock
from gpuserved.host.systemd import PortStore
from gpuserved.routers.routers import DRAIN_S, Routers
from gpuserved.telemetry.choose import choose

log = logging.getLogger(__name__)

BACKGROUND_ORPHAN_TTL_S = 1800.0
"""Nobody brings a daemon back that `gpuserve up` has started in the background."""


def live(roots: Roots, config: DaemonConfig, args: argparse.Namespace, path: Path | None) -> int:
    """Serve until told to end, or until another version has taken over; the exit code.

    :raises GpuserveError: it could not start; nothing was changed.
    """
    service = systemd.Service.take()
    failed: FailedUpgrade | None = None
    with contextlib.closing(PortStore(service.address, systemd.passed_descriptors())) as store:
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
    check_readable(roots.state / FILE_NAME)


async def serve(
    roots: Roots,
    config: DaemonConfig,
    args: argparse.Namespace,
    path: Path | None,
    service: systemd.Service,
    store: PortStore,
    failed: FailedUpgrade | None = None,
) -> Successor | int:
    """Run the daemon until it is told to end.

    :param path: the daemon's file; None: the one in the configuration folder, where there is one.
    :param store: the public port, as systemd holds it.
    :param failed: the upgrade whose failure this life begins with.
    :returns: the version to hand over to, or the exit code of an end.
    :raises GpuserveError: it could not start; nothing was changed.
    """
    lock = DaemonLock(roots.run / "daemon.lock")
    reach("serve.locked")
    settings, life = CurrentSettings(settings_of(config)), Lifecycle(args, service)
    routers = Routers(
        roots, access_log=config.access_log_in(roots.log), count=config.routers,
        drain_s=lambda: settings.value.router_drain_s,
    )  # fmt: skip
    ttl_s = config.orphan_ttl_s
    if ttl_s is None and args.background:
        ttl_s = BACKGROUND_ORPHAN_TTL_S
    fleet = Fleet(
        roots, routers, choose(os.environ, config.gpu_provider), settings,
        Daemon(lambda: settings_of(_read_again(roots, args, path)), life.shutdown, life.upgrade),
        orphan_ttl_s=ttl_s, about=About(service.address is not None, failed),
    )  # fmt: skip
    await open_port(routers, fleet.routes, config, store, asked=args.listen is not None)
    life.begin(fleet.reload)
    control = ControlServer(fleet, roots.control_socket, system=roots.system)
    try:
        await fleet.recover()
        routers.begin()
        fleet.begin()
        await control.start()
        reach("serve.listening")
        systemd.notify(service.address, "READY=1")
        await _greet(fleet, args, failed)
        how = await life.end()
        if isinstance(how, Successor):
            return how
        systemd.notify(service.address, "STOPPING=1")
        fleet.say(farewell(how))
        if isinstance(how, Stop):
            life.when_in_a_hurry(fleet.hurry)
            await fleet.stop_everything(drain=how.drain, forget=how.forget)
            await _stop_routers(roots, routers, store)
        return exit_code(how)
    finally:
        fleet.hang_up()
        await control.stop()
        await fleet.close()
        await routers.detach()
        await life.close()
        lock.release()


async def _greet(fleet: Fleet, args: argparse.Namespace, failed: FailedUpgrade | None) -> None:
    fleet.say(f"gpuserved PID {os.getpid()} serves {fleet.status().endpoint}")
    if args.profiles:
        await _apply_folder(fleet, Path(args.profiles))
    if failed is not None:
        fleet.say(f"the upgrade to {failed.version} failed, this version goes on: {failed.reason}", "error")


async def _stop_routers(roots: Roots, routers: Routers, store: PortStore) -> None:
    """End the routers, and let go of the port."""
    await routers.stop()
    reach("down.ended")
    await store.drop()
    (roots.run / "routing.json").unlink(missing_ok=True)


def settings_of(config: DaemonConfig) -> Settings:
    """What can change while the daemon runs, with the files that the configuration names.

    :raises Invalid: one of them cannot be used.
    """
    secure = config.tls_cert is not None and config.tls_key is not None
    return Settings(
        keys=tuple(read_keys(config.keys_file)) if config.keys_file else (),
        trusted_proxies=tuple(config.trusted_proxies),
        tls=Tls(cert=str(config.tls_cert), key=str(config.tls_key)) if secure else None,
        hf_token=read_hf_token(config.hf_token_file) if config.hf_token_file else None,
        hang_timeout_s=config.hang_timeout_s,
        memory_back_s=config.memory_back_s or MEMORY_BACK_S,
        webhook=config.webhook,
        router_drain_s=DRAIN_S if config.drain_s is None else config.drain_s,
    )


def _read_again(roots: Roots, args: argparse.Namespace, path: Path | None) -> DaemonConfig:
    """The configuration as the files have it now.

    :raises Invalid: naming file, line and key.
    """
    config = load_daemon_config(path or find_config(roots))
    config = config.with_flags(listen=args.listen, keys_file=args.keys_file, insecure=args.insecure)
    return config.with_default_keys(roots.config).checked()


async def _apply_folder(fleet: Fleet, folder: Path) -> None:
    """`--profiles DIR`: one apply of all of them. Where that is refused, what ran goes on, and `status` says why."""
    try:
        paths = sorted(folder.glob("*.toml"))
        targets = [resolve(str(path.absolute()), ()) for path in paths]
        if not targets:
            log.warning("%s holds no profile", folder)
            return
        request = ApplyRequest(
            profiles={each.name: each.text for each in targets},
            sources={each.name: each.source for each in targets},
        )
        await fleet.apply(request)
    except GpuserveError as error:
        fleet.report(f"{folder}: {error.message}")
    except OSError as error:
        fleet.report(f"{folder}: cannot be read: {error.strerror}")
