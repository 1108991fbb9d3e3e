"""top: the load of models and replicas."""

from __future__ import annotations

import argparse

from gpuserved.api.types import LoadView, ModelView, ReplicaView, Status
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.status import show
from gpuserved.cli.text import cut, number, table, unit
from gpuserved.host.logtail import clean

_MODEL = ["MODEL", "READY", "QUEUE", "FLY", "RUN", "WAIT"]
_REPLICA = ["REPLICA", "STATE", "FLY", "RUN", "WAIT", "KV"]
_LOAD = ["TOK/S", "TTFT50", "TTFT95", "ITL95", "HIT", "PRE/M"]


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("top", "top --once", "top --once --json")
    parser.add_argument("--once", action="store_true", help="show it once instead of every second")


def run(options: argparse.Namespace) -> int:
    """`gpuserve top`."""
    return show(options, top_lines, load_of, again=not options.once)


def load_of(status: Status) -> dict[str, object]:
    """What `top --json` prints: the figures of load alone."""
    return {
        "router": status.router,
        "load": status.load,
        "models": status.models,
        "replicas": [
            {
                "id": replica.id,
                "model": replica.model,
                "state": replica.state,
                "in_flight": replica.in_flight,
                "running": replica.running,
                "waiting": replica.waiting,
                "kv_cache_pct": replica.kv_cache_pct,
                "load": replica.load,
            }
            for replica in status.replicas
        ],
    }


def top_lines(status: Status, columns: int) -> list[str]:
    """Two tables. Latencies are of the last minute, in milliseconds; rates of the last ten seconds."""
    models = [_model(model) for model in status.models]
    total = [
        "all",
        "",
        number(status.router.queued),
        number(status.router.in_flight),
        "",
        "",
        *_load(status.load),
    ]
    lines = table([*_MODEL, *_LOAD], [*models, total], frozenset(range(1, 12)))
    replicas = [_replica(replica) for replica in status.replicas]
    lines += ["", *table([*_REPLICA, *_LOAD], replicas, frozenset(range(2, 12)))]
    return [cut(line, columns) for line in lines]


def _model(model: ModelView) -> list[str]:
    counts = (model.queued, model.in_flight, model.running, model.waiting)
    name = cut(clean(model.name), 24)
    return [name, f"{model.ready}/{model.replicas}", *map(number, counts), *_load(model.load)]


def _replica(replica: ReplicaView) -> list[str]:
    counts = (replica.in_flight, replica.running, replica.waiting)
    name = cut(clean(replica.id), 24)
    return [name, replica.state, *map(number, counts), unit(replica.kv_cache_pct, "%"), *_load(replica.load)]


def _load(load: LoadView | None) -> list[str]:
    if load is None:
        return ["-"] * len(_LOAD)
    times = (load.ttft_p50_s, load.ttft_p95_s, load.itl_p95_s)
    return [
        number(load.generation_tokens_per_s),
        *(number(None if seconds is None else seconds * 1000) for seconds in times),
        unit(load.prefix_hit_pct, "%"),
        number(load.preemptions_per_min),
    ]
