"""apply and reload, and what `up` and `plan` share with them: targets to a request."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import from_environment
from gpuserved.api.types import ApplyRequest, ApplyResult
from gpuserved.cli.parser import TARGET, VerbParser, add_engine, add_no_wait
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.config.profile import load_profile
from gpuserved.config.target import Target, profile_folders, resolve
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean


def add_arguments(parser: VerbParser) -> None:
    """Its arguments; reload has none."""
    if parser.verb == "reload":
        parser.examples("reload")
        return
    parser.examples(
        "apply profiles/llama-8b.toml",
        "apply profiles/llama-8b.toml --no-wait",
        "apply profiles/*.toml --prune --dry-run",
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=TARGET)
    parser.add_argument("--prune", action="store_true", help="remove profiles that are not named here")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    add_no_wait(parser)
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    """`gpuserve apply`, `gpuserve reload`."""
    if options.verb == "reload":
        _print_changes(client_of(options).reload(), as_json=options.json)
        return 0
    targets = read_targets(options.targets, options.engine)
    client = client_of(options)
    since = time.time()
    result = client.apply(request_of(targets, prune=options.prune, dry_run=options.dry_run))
    _print_changes(result, as_json=options.json, would=options.dry_run)
    if not options.dry_run and not options.no_wait:
        from gpuserved.cli.waiting import wait_rolled

        wait_rolled(client, frozenset(target.name for target, _ in targets), since)
    return 0


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


def _print_changes(result: ApplyResult, *, as_json: bool, would: bool = False) -> None:
    if as_json:
        print_json(result)
        return
    for warning in result.warnings:
        warn(f"warning: {clean(warning.message)}")
    changes = [change for change in result.changes if change.action != "keep"]
    for change in changes:
        why = f"  ({clean(change.why)})" if change.why else ""
        print(f"{'would ' if would else ''}{change.action} {clean(change.replica)}{why}")
    if not changes:
        print("nothing to change")
