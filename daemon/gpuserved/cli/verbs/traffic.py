"""Commands about requests rather than replicas: route."""

from __future__ import annotations

from gpuserved.cli.verbs.base import Verbs
from gpuserved.core.profile import Policy


def add(verbs: Verbs) -> None:
    """Add them."""
    route = verbs.add(
        "route",
        "route:route",
        "the router alone, in the foreground, in front of OpenAI-compatible servers that run already; needs no daemon",
        "route --listen 127.0.0.1:8000 --upstream http://127.0.0.1:8001 --upstream http://10.0.0.5:8000\n"
        "route --listen 0.0.0.0:8000 --keys-file keys --upstreams servers.txt --policy round_robin\n"
        "route --upstream unix:/run/vllm/a.sock --model llama-8b",
        json=False,
    )
    route.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8000", help="where to serve (127.0.0.1:8000)"
    )
    route.add_argument(
        "--upstream", metavar="URL", nargs="+", action="extend", default=[],
        help="http://HOST:PORT or unix:/PATH; may be repeated",
    )  # fmt: skip
    route.add_argument("--upstreams", metavar="FILE", help="more of them, one a line; SIGHUP reads it again")
    route.add_argument(
        "--policy", choices=[policy.value for policy in Policy], default=Policy.LEAST_INFLIGHT.value,
        help="how a request finds its server (least_inflight)",
    )  # fmt: skip
    route.add_argument(
        "--model", metavar="NAME", help="serve all under this name, whatever they call their first model"
    )
    route.add_argument(
        "--health-path", metavar="PATH", default="/health", help="their health check (/health)"
    )
    route.add_argument(
        "--keys-file", metavar="FILE", help="API keys, hashed, NAME:SHA256 a line; SIGHUP reads it again"
    )
    route.add_argument("--insecure", action="store_true", help="serve other machines without API keys")
