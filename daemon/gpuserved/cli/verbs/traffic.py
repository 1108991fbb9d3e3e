"""Commands about requests rather than replicas: route, bench."""

from __future__ import annotations

from gpuserved.cli.verbs.base import Verbs, count, seconds
from gpuserved.core.profile import Policy


def add(verbs: Verbs) -> None:
    """Add them."""
    _route(verbs)
    _bench(verbs)


def _route(verbs: Verbs) -> None:
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


def _bench(verbs: Verbs) -> None:
    bench = verbs.add(
        "bench",
        "bench:bench",
        "a load test: requests go out when they are due, however many are in flight (key: GPUSERVE_API_KEY)",
        "bench --rate 8 --seconds 60 --prompt-tokens 512 --output-tokens 64-256\n"
        "bench --compare --rate 20 --requests 400 --goodput ttft:500 tpot:50\n"
        "bench --shared-prefix 2000 --prefixes 8 --prompt-tokens 2200 --json\n"
        "bench --url http://10.0.0.5:8000 --rate 2\n"
        "bench --vllm --rate 8 --requests 200",
    )
    where = bench.add_argument_group("where")
    where.add_argument("--url", metavar="URL", help="another server than the daemon's router")
    where.add_argument("--model", "-m", metavar="M", help="served name or profile (the first one)")
    where.add_argument(
        "--direct", action="store_true", help="past the router, straight at the replicas in turn"
    )
    where.add_argument(
        "--compare", action="store_true", help="the same load through the router, then past it"
    )
    where.add_argument(
        "--vllm", action="store_true", help="run vLLM's own `vllm bench serve` with this load against the URL"
    )
    load = bench.add_argument_group("load")
    load.add_argument("--rate", type=float, default=4.0, metavar="R", help="requests per second (4)")
    load.add_argument("--arrivals", choices=["poisson", "fixed"], default="poisson", help="(poisson)")
    load.add_argument("--requests", type=count, default=100, metavar="N", help="how many (100)")
    load.add_argument("--seconds", type=seconds, metavar="S", help="instead of --requests: for how long")
    load.add_argument(
        "--prompt-tokens", default="128", metavar="N[-N]", help="words of a prompt, about a token each (128)"
    )
    load.add_argument("--output-tokens", default="64", metavar="N[-N]", help="length of an answer (64)")
    load.add_argument(
        "--shared-prefix", type=count, default=0, metavar="N", help="first words that prompts share (0)"
    )
    load.add_argument("--prefixes", type=count, default=1, metavar="N", help="different shared prefixes (1)")
    load.add_argument("--no-stream", action="store_true", help="whole answers")
    load.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed is the same load (1)")
    limits = bench.add_argument_group("limits")
    limits.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="WHAT:MS",
        help="ttft, tpot, e2e: what a good answer keeps",
    )
    limits.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="longest answer (600)")
    limits.add_argument(
        "--max-in-flight", type=count, default=4096, metavar="N",
        help="more are not sent and count as failed (4096)",
    )  # fmt: skip
