"""plan: what would run where, what fits and why; with or without a daemon."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid, Refused, Unavailable
from gpuserved.api.plan import Placement, Plan, PlanRequest
from gpuserved.api.roots import from_environment
from gpuserved.cli.apply import read_targets
from gpuserved.cli.parser import TARGET, VerbParser, add_engine
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.cli.text import gib, gpu_list, number, table
from gpuserved.config.document import placed
from gpuserved.config.target import Target
from gpuserved.core.placement import Gpu, Lease
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean

_ITEMS = (
    ("weights", "weights_bytes"),
    ("activations", "activation_bytes"),
    ("CUDA graphs", "cuda_graph_bytes"),
    ("other (context, NCCL)", "non_torch_bytes"),
    ("KV cache", "kv_cache_bytes"),
    ("headroom", "headroom_bytes"),
)
_LEVERS_SHOWN = 4


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "plan profiles/llama-8b.toml", "plan profiles/llama-8b.toml --inventory eight-h100.json --json"
    )
    parser.add_argument("target", metavar="TARGET", help=TARGET)
    parser.add_argument(
        "--inventory", metavar="FILE",
        help='plan for these GPUs: {"gpus": [{"index", "uuid", "name", "memory_total_bytes", "nvlink"}]}',
    )  # fmt: skip
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """`gpuserve plan`."""
    target, profile = read_targets([options.target], options.engine)[0]
    found = _on_paper(options.inventory, profile) if options.inventory else _here(options, target, profile)
    if options.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
        for warning in found.warnings:
            warn(f"warning ({warning.code}): {clean(warning.message)}")
    return 0 if found.fits else Refused.exit_code


def _here(options: argparse.Namespace, target: Target, profile: Profile) -> Plan:
    """For this host; a running daemon knows best what is taken."""
    request = PlanRequest(name=target.name, text=target.text, source=target.source)
    try:
        return client_of(options).plan(request)
    except Unavailable:
        if options.socket:
            raise
    from gpuserved.config.daemon import find_config, load_daemon_config
    from gpuserved.planning.inventory import free_gpus
    from gpuserved.telemetry.choose import choose

    # The GPUs that a daemon of this root would see.
    config = load_daemon_config(find_config(from_environment(os.environ, uid=os.getuid())))
    provider = choose(os.environ, config.gpu_provider)
    gpus = _without_quarantined(free_gpus(provider.inventory(), provider.sample()))
    try:
        return _local(profile, gpus, on_paper=False, leases=_leases(gpus, provider.name))
    except Invalid as error:
        raise placed(error, target.text, target.source) from None


def _without_quarantined(gpus: list[Gpu]) -> list[Gpu]:
    """GPUs that a daemon of this root has set aside stay aside while it does not run."""
    from gpuserved.fleet.quarantine import FILE, Quarantine

    quarantine = Quarantine(from_environment(os.environ, uid=os.getuid()).state / FILE)
    quarantine.load(touch=False)
    blocked = quarantine.blocked()
    return [replace(gpu, blocked=blocked.get(gpu.uuid, gpu.blocked)) for gpu in gpus]


def _on_paper(path: str, profile: Profile) -> Plan:
    return _local(profile, inventory_of(path), on_paper=True)


def inventory_of(path: str) -> list[Gpu]:
    """The GPUs of an `--inventory` file.

    :raises Invalid: it cannot be read, or is no inventory.
    """
    from gpuserved.planning.inventory import free_gpus
    from gpuserved.telemetry.file import parse

    try:
        document: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise Invalid(
            f"{path}: cannot be read: {error.strerror}", "check the path after --inventory"
        ) from None
    except ValueError as error:
        raise Invalid(f"{path}: not JSON: {error}", "see gpuserve plan --help for the form") from None
    return free_gpus(*parse(document, path))


def _leases(gpus: list[Gpu], provider: str) -> list[Lease]:
    """What daemons of this host hold: none of them is this root's, or it had been asked."""
    from gpuserved.host import gpulock
    from gpuserved.planning.inventory import leases_of_others

    folder = gpulock.folder(os.environ) if provider == "nvml" else None
    return leases_of_others(gpulock.GpuLocks(folder, "") if folder else None, gpus)


def _local(profile: Profile, gpus: list[Gpu], *, on_paper: bool, leases: Sequence[Lease] = ()) -> Plan:
    from gpuserved.planning.plan import plan_profile

    roots = from_environment(os.environ, uid=os.getuid())
    return plan_profile(
        profile, gpus, cache_dir=roots.cache, state_dir=roots.state, on_paper=on_paper, leases=leases
    )


def _lines(found: Plan) -> Iterator[str]:
    if found.refusal is not None:
        yield f"does not fit ({found.refusal.code}): {clean(found.refusal.message)}"
        yield f"  smallest change: {clean(found.refusal.hint)}"
    if found.placements:
        yield from _placements(found.placements)
    for sentence in found.why:
        yield f"why: {clean(sentence)}"
    yield from _sampling(found)
    yield from _cards(found.placements)
    if found.levers:
        yield ""
        yield "what would make more room, tokens of one replica:"
        rows = [
            [
                f"  {clean(each.change)}",
                str(each.kv_cache_tokens),
                "fits" if each.fits else "still too little",
            ]
            for each in found.levers[:_LEVERS_SHOWN]
        ]
        yield from table(["  CHANGE", "KV TOKENS", ""], rows, frozenset({1}))
    first = next((one for one in found.placements if one.command), None)
    if first is not None:
        yield ""
        yield f"{first.replica} would be started with:"
        for key, value in first.environment.items():
            yield f"  {key}={shlex.quote(clean(value))} \\"
        yield f"  {shlex.join(clean(word) for word in first.command)}"


def _sampling(found: Plan) -> Iterator[str]:
    if found.sampling:
        words = ", ".join(f"{name} {value:g}" for name, value in sorted(found.sampling.items()))
        yield f"sampling of requests that set nothing: {words} (the model's generation_config.json and the profile)"
    if found.answer_cap_tokens is not None:
        yield f"no answer is longer than {found.answer_cap_tokens} tokens: override_generation_config sets max_new_tokens"


def _placements(placements: Sequence[Placement]) -> list[str]:
    header = ["REPLICA", "GPUS", "TP", "MAX LEN", "WEIGHTS GiB", "KV GiB", "KV TOKENS", "REQUESTS"]
    rows = [
        [
            one.replica,
            gpu_list(one.gpus),
            str(one.tensor_parallel_size)
            + (f"x{one.data_parallel_size}" if one.data_parallel_size > 1 else ""),
            number(one.max_model_len),
            gib(one.weights_bytes),
            gib(one.kv_cache_bytes),
            number(one.kv_cache_tokens),
            "-" if one.max_concurrency is None else f"{one.max_concurrency:.1f}",
        ]
        for one in placements
    ]
    return table(header, rows, frozenset(range(2, 8)))


def _cards(placements: Sequence[Placement]) -> Iterator[str]:
    """One card for each set of figures: replicas on equal GPUs share it."""
    seen: set[tuple[object, ...]] = set()
    for one in placements:
        figures = tuple(getattr(one, key) for _, key in _ITEMS)
        if one.kv_cache_bytes is None or figures in seen:
            continue
        seen.add(figures)
        yield ""
        yield f"memory of each GPU of {one.replica} in GiB, {_basis(one)}:"
        rows = [[f"  {name}", _exact(getattr(one, key))] for name, key in _ITEMS]
        rows.append(["  total", _exact(sum(value for value in figures if isinstance(value, int)))])
        yield from table(["", ""], rows, frozenset({1}))[1:]


def _basis(one: Placement) -> str:
    if one.memory_source == "measured":
        return "measured"
    return f"estimated for {f'vLLM {one.memory_release}' if one.memory_release else 'any vLLM'}"


def _exact(value: int) -> str:
    return f"{value / 1024**3:.2f}"
