"""What is measured: how each proxy is configured and started. All without an access log, all with keep-alive upstream."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fetch import Missing
from benchmarks.process import Started, start, until_ready

from benchmarks import fetch

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["ALL", "DEFAULT", "Candidate", "Missing", "Setting", "ours_at"]


@dataclass(frozen=True)
class Setting:
    """Where a candidate works."""

    folder: Path
    sockets: list[Path]
    ports: list[int]
    policy: str


@dataclass(frozen=True)
class Candidate:
    """One proxy."""

    name: str
    upstream: str
    """Unix or TCP: how it reaches the replicas."""
    start: Callable[[Setting, int], Started]
    """Start it on a core; raises `Missing`."""
    version: Callable[[], str]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(
    setting: Setting,
    core: int,
    port: int,
    argv: list[str],
    environment: dict[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Started:
    path = setting.folder / "log"
    with path.open("wb") as log:
        process = start(
            argv, [core], stdout=log, stderr=subprocess.STDOUT, cwd=setting.folder, pass_fds=pass_fds,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    return until_ready(process, port, path)


def _direct(setting: Setting, core: int) -> Started:  # noqa: ARG001 - nothing runs on the proxy's core
    return Started(None, setting.ports)


def _nginx(setting: Setting, core: int) -> Started:
    program, environment = fetch.debian("nginx")
    port = _free_port()
    servers = "\n".join(f"    server unix:{path};" for path in setting.sockets)
    config = setting.folder / "nginx.conf"
    user = (
        f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    )  # its own would not reach the sockets
    config.write_text(f"""{user} daemon off; worker_processes 1; pid {setting.folder}/pid; error_log {setting.folder}/error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; tcp_nodelay on;
  client_body_temp_path {setting.folder}/body; proxy_temp_path {setting.folder}/proxy;
  fastcgi_temp_path {setting.folder}/f; uwsgi_temp_path {setting.folder}/u; scgi_temp_path {setting.folder}/s;
  upstream replicas {{
    least_conn;
{servers}
    keepalive 1024; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_buffering off; proxy_read_timeout 3600s;
    }}
  }}
}}
""")
    argv = [str(program), "-p", str(setting.folder), "-c", str(config)]
    return _started(setting, core, port, argv, environment)


def _haproxy(setting: Setting, core: int) -> Started:
    program, environment = fetch.debian("haproxy")
    port = _free_port()
    servers = "\n".join(f"  server r{i} unix@{path}" for i, path in enumerate(setting.sockets))
    config = setting.folder / "haproxy.cfg"
    config.write_text(f"""global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 2s
  timeout client 3600s
  timeout server 3600s
  option http-no-delay
  http-reuse always
frontend public
  bind 127.0.0.1:{port} backlog 4096
  default_backend replicas
backend replicas
  balance leastconn
{servers}
""")
    return _started(setting, core, port, [str(program), "-db", "-f", str(config)], environment)


def _vllm_router(policy: str) -> Callable[[Setting, int], Started]:
    def begin(setting: Setting, core: int) -> Started:
        port = _free_port()
        urls = [f"http://127.0.0.1:{replica}" for replica in setting.ports]
        argv = [
            str(fetch.vllm_router()), "--host", "127.0.0.1", "--port", str(port), "--policy", policy,
            "--prometheus-port", str(_free_port()), "--log-level", "warning", "--worker-urls", *urls,
        ]  # fmt: skip
        return _started(setting, core, port, argv)

    return begin


def _aiohttp(setting: Setting, core: int) -> Started:
    port = _free_port()
    program = Path(__file__).resolve().parent / "proxy_aiohttp.py"
    argv = [sys.executable, str(program), str(port), *map(str, setting.sockets)]
    return _started(setting, core, port, argv)


def _ours(checkout: Path) -> Callable[[Setting, int], Started]:
    def begin(setting: Setting, core: int) -> Started:
        replicas = [
            {"id": f"m-{i}", "generation": 1, "address": f"unix:{path}", "admit": True}
            for i, path in enumerate(setting.sockets)
        ]
        model = {"name": "m", "profile": "m", "policy": setting.policy, "replicas": replicas}
        table = setting.folder / "routing.json"
        table.write_text(json.dumps({"version": 1, "generation": 1, "models": [model]}))
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
            fd = listener.fileno()
            argv = [
                sys.executable, "-m", "gpuserved.router", "--fd", str(fd), "--table", str(table),
                "--control", str(setting.folder / "ctl.sock"),
            ]  # fmt: skip
            environment = {"PYTHONPATH": str(checkout / "daemon")}
            return _started(setting, core, listener.getsockname()[1], argv, environment, (fd,))

    return begin


def ours_at(name: str, checkout: Path) -> Candidate:
    """Our router as it stands in a checkout."""
    return Candidate(name, "Unix", _ours(checkout), lambda: f"gpuserve {fetch.revision(checkout)}")


def _debian_version(program: str, flag: str) -> Callable[[], str]:
    def read() -> str:
        path, environment = fetch.debian(program)
        said = fetch.version([str(path), flag], environment)
        return said.replace("nginx version: ", "").partition(" - ")[0]

    return read


def _aiohttp_version() -> str:
    return f"aiohttp {importlib.metadata.version('aiohttp')} on uvloop {importlib.metadata.version('uvloop')}"


ALL = {
    one.name: one
    for one in (
        Candidate("direct", "TCP", _direct, lambda: "no proxy"),
        Candidate("nginx", "Unix", _nginx, _debian_version("nginx", "-v")),
        Candidate("haproxy", "Unix", _haproxy, _debian_version("haproxy", "-v")),
        Candidate(
            "vllm-router", "TCP", _vllm_router("round_robin"), lambda: f"{fetch.VLLM_ROUTER}, round_robin"
        ),
        Candidate(
            "vllm-router-cache",
            "TCP",
            _vllm_router("cache_aware"),
            lambda: f"{fetch.VLLM_ROUTER}, cache_aware",
        ),
        Candidate("aiohttp", "Unix", _aiohttp, _aiohttp_version),
        ours_at("ours", ROOT),
    )
}
DEFAULT = ("direct", "nginx", "haproxy", "vllm-router", "aiohttp", "ours")
