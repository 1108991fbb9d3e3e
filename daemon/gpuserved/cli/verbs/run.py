"""Commands that bring profiles up and down: up, apply, down, plan."""

from __future__ import annotations

from gpuserved.cli.verbs.base import TARGET, Verbs, engine, no_wait, port, seconds


def add(verbs: Verbs) -> None:
    """Add them."""
    _up(verbs)
    _apply(verbs)
    _down(verbs)
    _plan(verbs)


def _up(verbs: Verbs) -> None:
    up = verbs.add(
        "up",
        "up:up",
        "start a daemon in the background if none runs, apply the targets, and wait until they are ready",
        "up profiles/demo.toml\nup meta-llama/Llama-3.1-8B-Instruct --listen 0.0.0.0:8000 --generate-key",
    )
    up.add_argument("targets", nargs="*", metavar="TARGET", help=TARGET)
    where = up.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="HOST:PORT", help="where a new daemon's router listens (127.0.0.1:8000)"
    )
    where.add_argument("--port", type=port, metavar="PORT", help="the same, on this machine only")
    engine(up)
    up.add_argument(
        "--wait",
        type=seconds,
        default=1800.0,
        metavar="S",
        help="how long to wait for ready (1800); 0: do not wait",
    )
    up.add_argument("--config", metavar="FILE", help="gpuserved.toml of a new daemon")
    up.add_argument("--keys-file", metavar="FILE", help="API keys of a new daemon, hashed")
    up.add_argument("--generate-key", action="store_true", help="make an API key and print it once")
    up.add_argument("--insecure", action="store_true", help="serve other machines without API keys")


def _apply(verbs: Verbs) -> None:
    apply = verbs.add(
        "apply",
        "apply:apply",
        "add or update these profiles, replicas one by one; others are left alone",
        "apply profiles/llama-8b.toml\napply profiles/llama-8b.toml --no-wait\napply profiles/*.toml --prune --dry-run",
    )
    apply.add_argument("targets", nargs="+", metavar="TARGET", help=TARGET)
    apply.add_argument("--prune", action="store_true", help="remove profiles that are not named here")
    apply.add_argument("--dry-run", action="store_true", help="only say what would change")
    no_wait(apply)
    engine(apply)


def _down(verbs: Verbs) -> None:
    down = verbs.add(
        "down", "down:down", "drain, stop everything, and stop the daemon", "down --yes", json=False
    )
    down.add_argument("--yes", "-y", action="store_true", help="do not ask")
    down.add_argument("--no-drain", action="store_true", help="do not wait for requests in flight")
    down.add_argument(
        "--keep-profiles", action="store_true", help="the next daemon starts what runs now (else: nothing)"
    )
    down.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="for a unit's ExecStop: do nothing where systemd restarts UNIT",
    )
    down.add_argument("--wait", type=seconds, default=3600.0, metavar="S", help="how long to wait (3600)")


def _plan(verbs: Verbs) -> None:
    plan = verbs.add(
        "plan",
        "plan:plan",
        "say where the replicas of a target would go, without changing anything; needs no daemon",
        "plan profiles/llama-8b.toml\nplan profiles/llama-8b.toml --inventory eight-h100.json --json",
    )
    plan.add_argument("target", metavar="TARGET", help=TARGET)
    plan.add_argument(
        "--inventory", metavar="FILE",
        help='plan for these GPUs: {"gpus": [{"index", "uuid", "name", "memory_total_bytes", "nvlink"}]}',
    )  # fmt: skip
    engine(plan)
