"""route: the router alone, in front of servers one runs oneself."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.cli.parser import VerbParser
from gpuserved.config.api_keys import read_keys
from gpuserved.config.daemon import DaemonConfig
from gpuserved.core.profile import Policy
from gpuserved.host.listen import bind, url_of
from gpuserved.host.systemd import inherited
from gpuserved.route.address import parse_upstreams
from gpuserved.route.service import Service, Wanted

log = logging.getLogger(__name__)


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "route --listen 127.0.0.1:8000 --upstream http://127.0.0.1:8001 --upstream http://10.0.0.5:8000",
        "route --listen 0.0.0.0:8000 --keys-file keys --upstreams servers.txt --policy round_robin",
        "route --upstream unix:/run/vllm/a.sock --model llama-8b",
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8000", help="where to serve (127.0.0.1:8000)"
    )
    parser.add_argument(
        "--upstream", metavar="URL", nargs="+", action="extend", default=[],
        help="http://HOST:PORT or unix:/PATH; may be repeated",
    )  # fmt: skip
    parser.add_argument("--upstreams", metavar="FILE", help="more of them, one a line; SIGHUP reads it again")
    parser.add_argument(
        "--policy", choices=[policy.value for policy in Policy], default=Policy.LEAST_INFLIGHT.value,
        help="how a request finds its server (least_inflight)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME", help="serve all under this name, whatever they call their first model"
    )
    parser.add_argument(
        "--health-path", metavar="PATH", default="/health", help="their health check (/health)"
    )
    parser.add_argument(
        "--keys-file", metavar="FILE", help="API keys, hashed, NAME:SHA256 a line; SIGHUP reads it again"
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without API keys")


def run(options: argparse.Namespace) -> int:
    """`gpuserve route`: in the foreground until SIGTERM or SIGINT."""
    config = DaemonConfig().with_flags(
        listen=options.listen, keys_file=options.keys_file, insecure=options.insecure
    )
    _safe(config)
    if not options.health_path.startswith("/"):
        raise Invalid(f"--health-path {options.health_path}: a path begins with /", "--health-path /health")
    file = None if options.upstreams is None else Path(options.upstreams).expanduser()

    def read() -> Wanted:
        keys = [] if config.keys_file is None else read_keys(config.keys_file)
        if not keys:
            _safe(config)
        return Wanted(parse_upstreams(options.upstream, file), keys)

    read()  # complains before the port is taken
    import uvloop

    listener = inherited() or bind(config.listen)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("gpuserved.router").setLevel(logging.WARNING)

    async def serve() -> None:
        service = Service(
            listener, read, policy=options.policy, override=options.model, health_path=options.health_path
        )
        log.info("serving %s/v1", url_of(listener))
        await service.run()

    uvloop.run(serve())
    return 0


def _safe(config: DaemonConfig) -> None:
    try:
        config.checked()
    except Invalid as error:
        raise Invalid(
            error.message, "--keys-file FILE with lines NAME:SHA256 sets them; --insecure serves everybody"
        ) from None
