"""Commands that act on what runs: start, stop, restart, drain, undrain, scale, quarantine, release, reload, upgrade."""

from __future__ import annotations

from gpuserved.cli.verbs.base import Verbs, count, no_wait, seconds


def add(verbs: Verbs) -> None:
    """Add them."""
    for name, summary in (
        ("start", "start replicas that are stopped, failed or waiting"),
        ("stop", "take replicas out of rotation, wait for their requests, and stop them"),
        ("restart", "drain, stop and start replicas; those of a PROFILE one by one"),
        ("drain", "take replicas out of rotation and keep them running"),
        ("undrain", "put drained replicas back into rotation"),
    ):
        verb = verbs.add(name, "act:act", summary, f"{name} llama-8b-0\n{name} llama-8b")
        verb.add_argument(
            "replicas", nargs="+", metavar="REPLICA", help="PROFILE-N, or PROFILE for all of its replicas"
        )
        if name == "restart":
            no_wait(verb)
    scale = verbs.add("scale", "act:scale", "change the number of replicas of a profile", "scale llama-8b 4")
    scale.add_argument("profile", metavar="PROFILE")
    scale.add_argument("count", type=count, metavar="N")
    for name, summary, example in (
        (
            "quarantine",
            "set GPUs aside: their replicas are drained, and move to others or wait",
            'quarantine 3\nquarantine 3 --reason "fan is loud, ticket 812"\nquarantine GPU-8f2c --json',
        ),
        ("release", "let GPUs that were set aside be used again; what waited for them starts", "release 3"),
    ):
        verb = verbs.add(name, f"act:{name}", summary, example)
        verb.add_argument(
            "gpus", nargs="+", metavar="GPU", help="its index or UUID, as gpuserve gpus shows it"
        )
        if name == "quarantine":
            verb.add_argument("--reason", metavar="TEXT", help="why, for whoever looks next")
    verbs.add("reload", "act:reload", "read the configuration, keys and profiles again", "reload")
    upgrade = verbs.add(
        "upgrade",
        "upgrade:upgrade",
        "let this version of gpuserve take over daemon and routers; replicas go on, no request fails, no stream is cut",
        "upgrade --dry-run\nupgrade\nupgrade --force --json",
    )
    upgrade.add_argument(
        "--dry-run",
        action="store_true",
        help="only show which process runs which version, and what would be replaced",
    )
    upgrade.add_argument(
        "--force", action="store_true", help="replace daemon and routers although they are of this version"
    )
    upgrade.add_argument(
        "--wait", type=seconds, default=180.0, metavar="S",
        help="how long to wait for daemon and routers (180); the old routers' last requests are not waited for",
    )  # fmt: skip
