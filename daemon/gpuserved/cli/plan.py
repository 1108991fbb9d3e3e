"""plan: pure placement, with or without a daemon."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid, Refused, Unavailable
from gpuserved.api.roots import from_environment
from gpuserved.api.types import Plan, PlanRequest
from gpuserved.cli.apply import read_targets
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.cli.text import gib, gpu_list, number, table
from gpuserved.config.target import Target
from gpuserved.core.placement import Gpu
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean
from gpuserved.telemetry.provider import GpuInfo, GpuSample


def plan(options: argparse.Namespace) -> int:
    """`gpuserve plan`."""
    target, profile = read_targets([options.target], options.engine)[0]
    found = _on_paper(options.inventory, profile) if options.inventory else _here(options, target, profile)
    if options.json:
        print_json(found)
    else:
        _show(found)
    return 0 if found.fits else Refused.exit_code


def _here(options: argparse.Namespace, target: Target, profile: Profile) -> Plan:
    """For this host; a running daemon knows best what is taken."""
    request = PlanRequest(name=target.name, text=target.text, source=target.source)
    try:
        return client_of(options).plan(request)
    except Unavailable:
        if options.socket:
            raise
    from gpuserved.telemetry.choose import choose

    provider = choose(os.environ)
    return _local(profile, as_gpus(provider.inventory(), provider.sample()), on_paper=False)


def _on_paper(path: str, profile: Profile) -> Plan:
    return _local(profile, inventory_of(path), on_paper=True)


def inventory_of(path: str) -> list[Gpu]:
    """The GPUs of an `--inventory` file.

    :raises Invalid: it cannot be read, or is no inventory.
    """
    from gpuserved.telemetry.file import parse

    try:
        document: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise Invalid(
            f"{path}: cannot be read: {error.strerror}", "check the path after --inventory"
        ) from None
    except ValueError as error:
        raise Invalid(f"{path}: not JSON: {error}", "see gpuserve plan --help for the form") from None
    return as_gpus(*parse(document, path))


def _local(profile: Profile, gpus: list[Gpu], *, on_paper: bool) -> Plan:
    from gpuserved.fleet.plan import plan_profile

    roots = from_environment(os.environ, uid=os.getuid())
    return plan_profile(profile, gpus, cache_dir=roots.cache, on_paper=on_paper)


def as_gpus(infos: list[GpuInfo], samples: list[GpuSample]) -> list[Gpu]:
    """The provider's facts as the planner takes them."""
    used = {sample.uuid: sample.memory_used_bytes for sample in samples}
    return [
        Gpu(
            info.index,
            info.uuid,
            info.name,
            info.memory_total_bytes,
            used.get(info.uuid),
            info.nvlink,
            info.numa_node,
        )
        for info in infos
    ]


def _show(found: Plan) -> None:
    if found.refusal is not None:
        print(
            f"does not fit ({found.refusal.code}): {clean(found.refusal.message)}\n  {clean(found.refusal.hint)}"
        )
    rows = [
        [
            one.replica,
            gpu_list(one.gpus),
            str(one.tensor_parallel_size),
            number(one.max_model_len),
            gib(one.weights_bytes),
            gib(one.kv_cache_bytes),
        ]
        for one in found.placements
    ]
    if rows:
        header = ["REPLICA", "GPUS", "TP", "MAX LEN", "WEIGHTS GiB", "KV GiB"]
        print("\n".join(table(header, rows, frozenset({2, 3, 4, 5}))))
    first = next((one for one in found.placements if one.command), None)
    if first is not None:
        import shlex

        print(f"\n{first.replica} would be started with:")
        for key, value in first.environment.items():
            print(f"  {key}={shlex.quote(clean(value))} \\")
        print(f"  {shlex.join(clean(word) for word in first.command)}")
    for warning in found.warnings:
        warn(f"warning ({warning.code}): {clean(warning.message)}")
