"""up: from nothing to a URL that answers."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Refused, Unavailable
from gpuserved.api.roots import Roots, from_environment
from gpuserved.api.types import ReplicaView, Status
from gpuserved.cli.apply import read_targets, request_of
from gpuserved.cli.background import start_daemon
from gpuserved.cli.down import wait_gone
from gpuserved.cli.keys import generate_key, keys_path
from gpuserved.cli.parser import TARGET, VerbParser, add_engine, port, seconds
from gpuserved.cli.session import client_of, notice, print_json, warn
from gpuserved.config.daemon import find_config, load_daemon_config, parse_listen
from gpuserved.config.target import Target
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean

_UNDO_LIMIT_S = 60.0


@dataclass(frozen=True)
class Daemon:
    """The daemon that `up` talks to."""

    client: ControlClient
    status: Status
    fresh: bool
    """True where this `up` has started it."""


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "up profiles/demo.toml", "up meta-llama/Llama-3.1-8B-Instruct --listen 0.0.0.0:8000 --generate-key"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=TARGET)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="HOST:PORT", help="where a new daemon's router listens (127.0.0.1:8000)"
    )
    where.add_argument("--port", type=port, metavar="PORT", help="the same, on this machine only")
    add_engine(parser)
    parser.add_argument(
        "--wait", type=seconds, default=1800.0, metavar="S",
        help="how long to wait for ready (1800); 0: do not wait",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="gpuserved.toml of a new daemon")
    parser.add_argument("--keys-file", metavar="FILE", help="API keys of a new daemon, hashed")
    parser.add_argument("--generate-key", action="store_true", help="make an API key and print it once")
    parser.add_argument("--insecure", action="store_true", help="serve other machines without API keys")


def run(options: argparse.Namespace) -> int:
    """`gpuserve up`."""
    targets = read_targets(options.targets, options.engine)
    if options.port is not None:
        options.listen = f"127.0.0.1:{options.port}"
    if options.listen is not None:
        parse_listen(options.listen)
    roots = from_environment(os.environ, uid=os.getuid())
    daemon, key = _daemon(options, roots)
    since = time.time()
    if targets:
        _apply(daemon, targets)
    _say_key(key)
    if options.wait == 0 or not targets:
        warn(f"applied; gpuserve status shows the progress at {daemon.status.endpoint}")
        return 0
    from gpuserved.cli.waiting import wait_ready, wait_rolled

    profiles = frozenset(target.name for target, _ in targets)
    try:
        wait_rolled(daemon.client, profiles, since, options.wait)
        replicas = wait_ready(daemon.client, profiles, options.wait)
    except KeyboardInterrupt:
        warn("\nno longer waiting; the daemon and its replicas go on: gpuserve status, gpuserve down")
        return 130
    status = daemon.client.status()
    if options.json:
        print_json(status)
    else:
        _say_ready(status, replicas, with_key=key is not None or options.keys_file is not None)
    notice(daemon.client)
    return 0


def _daemon(options: argparse.Namespace, roots: Roots) -> tuple[Daemon, str | None]:
    """The running daemon, or a new one; and the key that was made."""
    client = client_of(options)
    try:
        status = client.status()
    except Unavailable:
        if options.socket or os.environ.get("GPUSERVE_SOCKET"):
            raise Unavailable(
                f"no daemon listens at {client.socket_path}, and up starts one only where its root has the socket",
                "set GPUSERVE_ROOT instead of naming a socket",
            ) from None
        return _start(options, roots)
    _same_address(options.listen, status)
    for flag, given in (
        ("--config", options.config),
        ("--keys-file", options.keys_file),
        ("--insecure", options.insecure),
    ):
        if given:
            raise Refused(
                f"{flag} is for a new daemon, and one runs already (PID {status.supervisor.pid})",
                "gpuserve down first, or change its gpuserved.toml and gpuserve reload",
            )
    key = None
    if options.generate_key:
        config = load_daemon_config(find_config(roots))
        key = generate_key(keys_path(config, roots))
        client.reload()
    return Daemon(client, status, fresh=False), key


def _start(options: argparse.Namespace, roots: Roots) -> tuple[Daemon, str | None]:
    path = Path(options.config).expanduser().absolute() if options.config else find_config(roots)
    config = load_daemon_config(path).with_flags(
        listen=options.listen, keys_file=options.keys_file, insecure=options.insecure
    )
    key = None
    if options.generate_key:
        config = config.with_flags(keys_file=str(keys_path(config, roots)))
        assert config.keys_file is not None
        key = generate_key(config.keys_file)
    config = config.with_default_keys(roots.config).checked()
    flags: list[str] = []
    if path is not None:
        flags += ["--config", str(path)]
    if options.listen is not None:
        flags += ["--listen", config.listen]
    if config.keys_file is not None and (options.keys_file or options.generate_key):
        flags += ["--keys-file", str(config.keys_file)]
    if options.insecure:
        flags.append("--insecure")
    started = start_daemon(roots, flags)
    status = started.client.status()
    if not started.ours:
        _same_address(options.listen, status)
    return Daemon(started.client, status, fresh=started.ours), key


def _same_address(listen: str | None, status: Status) -> None:
    """Refuse to go on with a daemon that listens elsewhere than asked."""
    if listen is None or status.endpoint is None:
        return
    there = urlsplit(status.endpoint)
    host, port = parse_listen(listen)
    if (_as_client(host), port) != (_as_client(there.hostname or ""), there.port or 80):
        raise Refused(
            f"a daemon (PID {status.supervisor.pid}) already serves {status.endpoint}, not {listen}",
            "leave out --listen and --port to use it, or gpuserve down first; GPUSERVE_ROOT=DIR makes room for a second one",
        )


def _as_client(host: str) -> str:
    """The host a local client would use: the endpoint shows a wildcard address so."""
    return {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _apply(daemon: Daemon, targets: Sequence[tuple[Target, Profile]]) -> None:
    try:
        result = daemon.client.apply(request_of(targets))
    except GpuserveError:
        if daemon.fresh and not daemon.status.replicas:
            _undo(daemon)
        raise
    for warning in result.warnings:
        warn(f"warning: {clean(warning.message)}")


def _undo(daemon: Daemon) -> None:
    """A daemon that was started for targets it then refused is not left behind."""
    try:
        daemon.client.shutdown(drain=False)
        wait_gone(daemon.client, daemon.status.supervisor.pid, _UNDO_LIMIT_S)
    except GpuserveError as error:
        warn(f"the daemon that was started for this still runs: {error.message}")


def _say_key(key: str | None) -> None:
    if key is not None:
        warn(
            f"API key, shown only now: {key}\n  clients send it as Authorization: Bearer KEY; gpuserve chat reads GPUSERVE_API_KEY"
        )


def _say_ready(status: Status, replicas: Sequence[ReplicaView], *, with_key: bool) -> None:
    ready = [replica for replica in replicas if replica.state == "READY"]
    others = [f"{clean(replica.id)} is {replica.state}" for replica in replicas if replica.state != "READY"]
    print(
        f"{len(ready)} replica{'s' if len(ready) != 1 else ''} ready{''.join(f', {other}' for other in others)}"
    )
    print(f"{status.endpoint}/v1")
    if not ready:
        return
    import json

    body = {
        "model": ready[0].model,
        "messages": [{"role": "user", "content": "My order is late."}],
        "max_tokens": 200,
    }
    auth = ' -H "Authorization: Bearer $GPUSERVE_API_KEY"' if with_key else ""
    print(
        f"\n  curl {status.endpoint}/v1/chat/completions -H 'Content-Type: application/json'{auth} \\\n"
        f"    -d {shlex.quote(json.dumps(body))}"
    )
