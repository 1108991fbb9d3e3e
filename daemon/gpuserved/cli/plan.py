"""plan: what would run where, what fits and why; with or without a daemon."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid, Refused, Unavailable
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.roots import from_environment
from gpuserved.cli.apply import read_targets
from gpuserved.cli.plan_text import plan_lines
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.config.document import placed
from gpuserved.config.target import Target
from gpuserved.core.placement import Gpu, Lease
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean


def plan(options: argparse.Namespace) -> int:
    """`gpuserve plan`."""
    target, profile = read_targets([options.target], options.engine)[0]
    found = _on_paper(options.inventory, profile) if options.inventory else _here(options, target, profile)
    if options.json:
        print_json(found)
    else:
        print("\n".join(plan_lines(found)))
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
