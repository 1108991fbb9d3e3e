"""apply, and what `up` shares with it: targets to a request."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import from_environment
from gpuserved.api.types import ApplyRequest
from gpuserved.cli.act import print_changes
from gpuserved.cli.rollout import wait_rolled
from gpuserved.cli.session import client_of
from gpuserved.config.profile import load_profile
from gpuserved.config.target import Target, profile_folders, resolve
from gpuserved.core.profile import Profile


def read_targets(written: Sequence[str], engine: str | None) -> list[tuple[Target, Profile]]:
    """Find and check every target, so that one that is wrong changes nothing.

    :raises Invalid: or NotFound: names what is wrong with the first bad one.
    """
    folders = profile_folders(from_environment(os.environ, uid=os.getuid()).config, Path.cwd())
    found: dict[str, tuple[Target, Profile]] = {}
    for one in written:
        target = resolve(one, folders, engine=engine)
        profile = load_profile(target.text, target.source, target.name)
        if target.name in found and found[target.name][0] != target:
            raise Invalid(
                f"two targets are named {target.name}: {found[target.name][0].source} and {target.source}",
                "rename one of the files",
            )
        found[target.name] = (target, profile)
    return list(found.values())


def request_of(
    targets: Sequence[tuple[Target, Profile]], *, prune: bool = False, dry_run: bool = False
) -> ApplyRequest:
    """The targets as the daemon wants them."""
    return ApplyRequest(
        profiles={target.name: target.text for target, _ in targets},
        sources={target.name: target.source for target, _ in targets},
        prune=prune,
        dry_run=dry_run,
    )


def apply(options: argparse.Namespace) -> int:
    """`gpuserve apply`."""
    targets = read_targets(options.targets, options.engine)
    client = client_of(options)
    since = time.time()
    result = client.apply(request_of(targets, prune=options.prune, dry_run=options.dry_run))
    print_changes(result, as_json=options.json, would=options.dry_run)
    if not options.dry_run and not options.no_wait:
        wait_rolled(client, frozenset(target.name for target, _ in targets), since)
    return 0
