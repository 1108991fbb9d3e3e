"""The composition root: what starts in which order, and what ends in which."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from gpuserved.api.errors import Conflict, GpuserveError, Refused
from gpuserved.api.processes import FailedUpgrade
from gpuserved.api.roots import Roots
from gpuserved.api.routing import Tls
from gpuserved.api.types import ApplyRequest
from gpuserved.api.upgrade import UpgradeAccepted, UpgradeRequest
from gpuserved.app import succession
from gpuserved.app.ending import Abandoned, End, Stop, exit_code, farewell, stop_everything
from gpuserved.app.main import BACKGROUND_ORPHAN_TTL_S
from gpuserved.app.port import open_port
from gpuserved.app.succession import Successor
from gpuserved.app.watchdog import feed_watchdog
from gpuserved.config.api_keys import read_keys
from gpuserved.config.daemon import DaemonConfig, find_config, load_daemon_config, read_hf_token
from gpuserved.control.server import ControlServer
from gpuserved.core.events import EventKind
from gpuserved.fleet.fleet import MEMORY_BACK_S, Fleet
from gpuserved.fleet.gpus import Gpus
from gpuserved.fleet.take_up import take_up
from gpuserved.host import listen, systemd
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import DaemonLock
from gpuserved.host.systemd import PortStore
from gpuserved.routers.routers import DRAIN_S, Routers
from gpuserved.telemetry.choose import choose

log = logging.getLogger(__name__)

ANSWER_FIRST_S = 0.1
"""Between the answer to an upgrade and the end that it brings."""


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

    :param store: the public port, as systemd holds it.
    :param failed: the upgrade whose failure this life begins with.
    :returns: the version to hand over to, or the exit code of an end.
    :raises GpuserveError: it could not start; nothing was changed.
    """
    notify = service.address
    lock = DaemonLock(roots.run / "daemon.lock")
    reach("serve.locked")
    end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
    fleet = await _assemble(roots, config, args, store)
    fleet.service, fleet.failed_upgrade = notify is not None, failed
    _wire(fleet, args, path, end, service)
    control = ControlServer(fleet, roots.control_socket, system=roots.system)
    watchdog = asyncio.ensure_future(feed_watchdog(notify, service.ping_s))  # a drain may outlast its wait
    try:
        fleet.inspection.history.begin(roots.log)
        await take_up(fleet)
        fleet.router.begin()
        fleet.gpus.begin(fleet.owners, fleet.telemetry)
        fleet.environments.begin()
        await control.start()
        reach("serve.listening")
        systemd.notify(notify, "READY=1")
        _say(fleet, f"gpuserved PID {os.getpid()} serves {fleet.endpoint}")
        if args.profiles:
            await _apply_folder(fleet, Path(args.profiles))
        if failed is not None:
            said = f"the upgrade to {failed.version} failed, this version goes on: {failed.reason}"
            fleet.bus.publish("notice", message=said, severity="error")
        how = await end
        if isinstance(how, Successor):
            fleet.save_quietly()
            return how
        systemd.notify(notify, "STOPPING=1")
        _say(fleet, farewell(how))
        if isinstance(how, Stop):
            await stop_everything(fleet, how, store)
    finally:
        await _let_go(fleet, control)
        watchdog.cancel()
        lock.release()
    return exit_code(how)


async def _let_go(fleet: Fleet, control: ControlServer) -> None:
    """Hang up on everybody: replicas and routers go on."""
    fleet.bus.close()
    await control.stop()
    for owner in list(fleet.owners.values()):
        await owner.detach()
    await fleet.router.detach()
    await fleet.webhook.close()
    await fleet.environments.close()
    fleet.gpus.close()
    fleet.inspection.history.close()


def _say(fleet: Fleet, what: str) -> None:
    """To the log and to whoever reads events, also later: that a daemon ended explains what happened after."""
    log.info("%s", what)
    fleet.bus.publish("notice", message=what)


async def _assemble(roots: Roots, config: DaemonConfig, args: argparse.Namespace, store: PortStore) -> Fleet:
    ttl = config.orphan_ttl_s
    if ttl is None and args.background:
        ttl = BACKGROUND_ORPHAN_TTL_S
    gpus = Gpus(choose(os.environ, config.gpu_provider))
    router = Routers(roots, lambda: None, access_log=config.access_log_in(roots.log), count=config.routers)
    fleet = Fleet(roots, router, gpus, orphan_ttl_s=ttl)
    _settings(fleet, config)
    await open_port(fleet, config, store, asked=args.listen is not None)
    return fleet


def _settings(fleet: Fleet, config: DaemonConfig) -> None:
    """What can change while the daemon runs."""
    fleet.keys = read_keys(config.keys_file) if config.keys_file else []
    fleet.trusted_proxies = list(config.trusted_proxies)
    secure = config.tls_cert is not None and config.tls_key is not None
    fleet.tls = Tls(cert=str(config.tls_cert), key=str(config.tls_key)) if secure else None
    fleet.hf_token = read_hf_token(config.hf_token_file) if config.hf_token_file else None
    fleet.hang_timeout_s = config.hang_timeout_s
    fleet.memory_back_s = config.memory_back_s or MEMORY_BACK_S
    fleet.webhook.url = config.webhook
    fleet.router.drain_s = DRAIN_S if config.drain_s is None else config.drain_s


def _wire(
    fleet: Fleet,
    args: argparse.Namespace,
    path: Path | None,
    end: asyncio.Future[End],
    service: systemd.Service,
) -> None:
    """Signals and the control API's wishes that concern the daemon itself."""
    loop = asyncio.get_running_loop()

    def finish(how: End) -> None:
        if not end.done():
            end.set_result(how)
        elif isinstance(how, Stop) and not how.drain:
            for owner in fleet.owners.values():
                owner.post(EventKind.DRAIN_TIMEOUT)

    def interrupted() -> None:
        finish(Stop(drain=not end.done(), forget=False))

    def reload_settings() -> None:
        config = load_daemon_config(path or find_config(fleet.roots))
        config = config.with_flags(listen=args.listen, keys_file=args.keys_file, insecure=args.insecure)
        _settings(fleet, config.with_default_keys(fleet.roots.config).checked())
        if fleet.router.listener is not None:
            fleet.endpoint = listen.url_of(fleet.router.listener, tls=fleet.tls is not None)

    def hang_up() -> None:
        task = asyncio.ensure_future(fleet.reload())
        task.add_done_callback(_report_reload)

    async def upgrade(request: UpgradeRequest) -> UpgradeAccepted:
        if not args.background and not fleet.service:
            raise Refused(
                "this daemon runs in the foreground: nobody would wait for the one that takes its place",
                "end it with SIGTERM, replicas and routers go on, and start the new version in its place",
            )
        if end.done():
            raise Conflict("this daemon is about to end", "look again with gpuserve status")
        successor = await succession.check(request, sys.argv[1:], os.environ)
        loop.call_later(ANSWER_FIRST_S, finish, successor)
        return UpgradeAccepted(version=successor.version)

    if service.predecessor_fd is not None:
        succession.watch(service.predecessor_fd, lambda: finish(Abandoned()))
    fleet.on_upgrade = upgrade
    fleet.on_shutdown = lambda drain, forget: finish(Stop(drain=drain, forget=forget))
    fleet.on_reload = reload_settings
    loop.add_signal_handler(signal.SIGTERM, finish, None)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def _report_reload(task: asyncio.Task[object]) -> None:
    error = task.exception()
    if isinstance(error, GpuserveError):
        log.error("reload refused, nothing has changed: %s", error.message)
    elif error is not None:
        log.error("reload failed", exc_info=error)


async def _apply_folder(fleet: Fleet, folder: Path) -> None:
    """`--profiles DIR`: one apply of all of them; an error is logged and what ran goes on."""
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        log.warning("%s holds no profile", folder)
        return
    request = ApplyRequest(
        profiles={path.stem: path.read_text("utf-8") for path in paths},
        sources={path.stem: str(path.absolute()) for path in paths},
    )
    try:
        await fleet.apply(request)
    except GpuserveError as error:
        fleet.degraded = error.message
        log.error("%s: %s", folder, error.message)  # noqa: TRY400 - the operator's mistake, not ours
