"""bench: an open-loop load test of the router, or of the replicas behind it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Invalid, NotFound, Refused, Unavailable
from gpuserved.api.roots import find_socket
from gpuserved.bench.figures import LATE_WARN_S, PERCENTILES, Goal, summary
from gpuserved.bench.plan import Lengths, Shape, plan
from gpuserved.bench.run import Progress, Run, Target
from gpuserved.bench.vllm import Where, command_line, find_vllm
from gpuserved.cli.chat import choose_model
from gpuserved.cli.parser import VerbParser, count, seconds
from gpuserved.cli.session import client_of, print_json, warn

_LENGTHS = re.compile(r"(\d+)(?:-(\d+))?")
_GOALS = ("ttft", "tpot", "e2e")
Json = dict[str, Any]
_RATES = (
    ("requests", "requests", ""),
    ("offered", "offered_per_s", " req/s"),
    ("answered", "answered_per_s", " req/s"),
    ("failed", "failed_pct", " %"),
    ("lost", "lost_pct", " %"),
    ("goodput", "goodput_per_s", " req/s"),
    ("within the goal", "goodput_pct", " %"),
    ("prompt tokens", "prompt_tokens_per_s", " tok/s"),
    ("output tokens", "output_tokens_per_s", " tok/s"),
)
_TIMES = (
    ("ttft_ms", "time to first token"),
    ("itl_ms", "inter-token latency"),
    ("tpot_ms", "time per output token"),
    ("e2e_ms", "end to end"),
)


@dataclass(frozen=True)
class Service:
    """What is loaded."""

    url: str
    model: str
    client: ControlClient | None
    """None: a URL of the user's own."""


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "bench --rate 8 --seconds 60 --prompt-tokens 512 --output-tokens 64-256",
        "bench --compare --rate 20 --requests 400 --goodput ttft:500 tpot:50",
        "bench --shared-prefix 2000 --prefixes 8 --prompt-tokens 2200 --json",
        "bench --url http://10.0.0.5:8000 --rate 2",
        "bench --vllm --rate 8 --requests 200",
    )
    where = parser.add_argument_group("where")
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
    load = parser.add_argument_group("load")
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
    limits = parser.add_argument_group("limits")
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


def run(options: argparse.Namespace) -> int:
    """`gpuserve bench`: 0 where every request was answered, else 1."""
    shape = _shape(options)
    goal = _goal(options.goodput)
    service = _service(options)
    if options.vllm:
        return _vllm(service, shape)
    runs: dict[str, dict[str, Any]] = {}
    for name, (targets, model) in _targets(options, service).items():
        runs[name] = _one(name, targets, model, shape, goal, options)
    if options.json:
        print_json({"model": service.model, "url": service.url, "runs": runs})
    else:
        print(_table(runs))
        for name, run in runs.items():
            for line in _notes(name, run):
                print(line)
    return 0 if all(run["failed_pct"] == 0 for run in runs.values()) else 1


def _one(
    name: str, targets: list[Target], model: str, shape: Shape, goal: Goal, options: argparse.Namespace
) -> dict[str, Any]:
    import uvloop

    live = sys.stderr.isatty()

    def show(now: Progress) -> None:
        if live:
            print(f"\r\x1b[K{_progress(name, now)}", end="", file=sys.stderr, flush=True)

    run = Run(
        plan(shape, model), targets, key=os.environ.get("GPUSERVE_API_KEY"), timeout_s=options.timeout,
        in_flight_max=options.max_in_flight, show=show,
    )  # fmt: skip
    try:
        results = uvloop.run(run.run())
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return summary(results, run.progress.elapsed_s, shape.rate_per_s, goal)


def _lengths(given: str, flag: str) -> Lengths:
    found = _LENGTHS.fullmatch(given)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise Invalid(
            f"{flag} {given}: no number of tokens", f"{flag} 128, or {flag} 64-512 for a random length"
        )
    return Lengths(low, high)


def _shape(options: argparse.Namespace) -> Shape:
    if options.rate <= 0:
        raise Invalid(f"--rate {options.rate:g}: requests per second are more than 0", "--rate 4")
    requests = options.requests
    if options.seconds is not None:
        requests = max(1, round(options.rate * options.seconds))
    prompt = _lengths(options.prompt_tokens, "--prompt-tokens")
    if options.shared_prefix > prompt.low:
        raise Invalid(
            f"--shared-prefix {options.shared_prefix} is longer than the shortest prompt, {prompt.low} tokens",
            "make --prompt-tokens larger: the shared prefix is part of it",
        )
    return Shape(
        rate_per_s=options.rate, requests=requests, poisson=options.arrivals == "poisson", prompt=prompt,
        output=_lengths(options.output_tokens, "--output-tokens"), prefix_tokens=options.shared_prefix,
        prefixes=max(1, options.prefixes), stream=not options.no_stream, seed=options.seed,
    )  # fmt: skip


def _goal(given: list[str]) -> Goal:
    limits: dict[str, float] = {}
    for pair in given:
        name, _, value = pair.partition(":")
        try:
            limits[f"{name}_s"] = float(value) / 1e3
        except ValueError:
            name = ""
        if name not in _GOALS:
            raise Invalid(
                f"--goodput {pair}: no goal", "--goodput ttft:500 tpot:50, in milliseconds; also e2e"
            )
    return Goal(**limits)


def _service(options: argparse.Namespace) -> Service:
    if options.url is not None:
        url = options.url.rstrip("/").removesuffix("/v1")
        if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
            raise Invalid(f"--url {options.url}: no http:// URL", "--url http://127.0.0.1:8000")
        if options.direct or options.compare:
            raise Invalid(
                "--direct and --compare need a daemon: --url names one place",
                "give --url the server's own URL",
            )
        return Service(url, options.model or _first_model(url), None)
    client = client_of(options)
    status = client.status()
    if status.endpoint is None:
        raise Unavailable("the daemon has no URL yet", "gpuserve status says why")
    return Service(status.endpoint, choose_model(status, options.model or "default"), client)


def _first_model(url: str) -> str:
    import http.client

    import msgspec

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)
    key = os.environ.get("GPUSERVE_API_KEY")
    try:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        body = response.read()
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url} cannot be reached: {error}", "check --url") from None
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise NotFound(
            f"{url}/v1/models names no model ({response.status})", "--model NAME; key: GPUSERVE_API_KEY"
        ) from None
    finally:
        connection.close()


def _targets(options: argparse.Namespace, service: Service) -> dict[str, tuple[list[Target], str]]:
    """Targets and the model's name there, by the name of the run."""
    parts = urlsplit(service.url)
    router = [Target("router", f"tcp:{parts.hostname}:{parts.port or 80}")]
    runs = {} if options.direct and not options.compare else {"router": (router, service.model)}
    if options.direct or options.compare:
        runs["direct"] = _replicas(options, service.model)
    return runs


def _replicas(options: argparse.Namespace, model: str) -> tuple[list[Target], str]:
    """The admitted replicas of a model, from the routing table beside the control socket."""
    from gpuserved.router.control import decode_table

    path = find_socket(os.environ, options.socket).parent / "routing.json"
    try:
        routes = decode_table(path.read_bytes()).models
    except PermissionError:
        raise Refused(
            f"{path}: only the daemon's user may reach the replicas past the router",
            "run it as that user, or leave --direct out",
        ) from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path}: {error}", "is this the daemon's machine?") from None
    found = [one for route in routes if route.name == model for one in route.replicas if one.admit]
    if not found:
        raise NotFound(f"no replica of {model} takes requests", "gpuserve status")
    return [Target(one.id, one.address) for one in found], found[0].upstream_model or model


def _vllm(service: Service, shape: Shape) -> int:
    """Run vLLM's load test in this terminal; its exit code."""
    command: Sequence[str] = []
    tokenizer = service.model
    if service.client is not None:
        profile = next(one.profile for one in service.client.status().replicas if one.model == service.model)
        view = next((one for one in service.client.profiles().profiles if one.name == profile), None)
        tokenizer = (view and view.model) or tokenizer
        command = service.client.detail(f"{profile}-0").command
    program = find_vllm(command)
    environment = dict(os.environ)
    if "GPUSERVE_API_KEY" in environment:
        environment["OPENAI_API_KEY"] = environment["GPUSERVE_API_KEY"]
    argv = command_line(program, Where(service.url, service.model, tokenizer), shape, PERCENTILES)
    warn("running " + " ".join(argv))
    try:
        return subprocess.run(argv, env=environment, check=False, cwd=Path.cwd()).returncode
    except OSError as error:
        raise Refused(f"{program}: {error.strerror}", "check that environment") from None


def _number(value: float | None, unit: str = "") -> str:
    """A figure short enough to read; unknown is a dash."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def _table(runs: Mapping[str, Json]) -> str:
    """Throughput with a column for each run, then latencies with a row for each run and a column for each percentile."""
    rows: list[tuple[str, ...]] = [("", *runs)]
    for label, key, unit in _RATES:
        cells = [_number(run[key], unit) for run in runs.values()]
        if any(cell != "-" for cell in cells):
            rows.append((label, *cells))
    marks = (*(f"p{percent}" for percent in PERCENTILES), "max")
    times: list[tuple[str, ...]] = [("ms", "", *marks)]
    for key, label in _TIMES:
        known = {name: run[key] for name, run in runs.items() if run[key] is not None}
        times += [(label, name, *(_number(spread[mark]) for mark in marks)) for name, spread in known.items()]
    return "\n".join([*_aligned(rows), "", *_aligned(times, words=2)])


def _aligned(rows: Sequence[tuple[str, ...]], words: int = 1) -> list[str]:
    """Columns: the first `words` to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _notes(name: str, run: Json) -> list[str]:
    """Replicas, failures, and what makes the figures doubtful."""
    lines = []
    for replica, its in run["replicas"].items():
        ttft = (its["ttft_ms"] or {}).get("p50")
        lines.append(
            f"{name}: {replica}: {its['requests']} requests, {its['failed']} failed, "
            f"{_number(its['output_tokens_per_s'])} tok/s, first token p50 {_number(ttft, ' ms')}"
        )
    lines += [f"{name}: {count} x {why}" for why, count in run["failures"].items()]
    late = (run["client_late_ms"] or {}).get("p99", 0.0)
    if late > LATE_WARN_S * 1e3:
        lines.append(
            f"{name}: this client sent late (p99 {_number(late, ' ms')}): it, or its machine, is too slow for this load; latencies "
            "include that"
        )
    return lines


def _progress(name: str, now: Progress) -> str:
    """One line while it runs."""
    failed = sum(result.outcome.value != "ok" for result in now.results)
    return (
        f"{name}: {now.elapsed_s:6.1f} s  {now.sent}/{now.total} sent  {now.in_flight} in flight  "
        f"{len(now.results) - failed} answered  {failed} failed"
    )
