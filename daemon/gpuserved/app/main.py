"""`gpuserved`: the daemon in the foreground."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import sys
from pathlib import Path

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import Roots, from_environment, make_private
from gpuserved.config.daemon import DaemonConfig, load_daemon_config
from gpuserved.host import failpoint

LOG_MAX_BYTES = 16 * 1024 * 1024
LOG_KEEP = 3

EXAMPLES = """examples:
  gpuserved                              serve what was applied last, on 127.0.0.1:8000
  gpuserved --profiles /etc/gpuserve/profiles --listen 127.0.0.1:9000
  gpuserved --config gpuserved.toml

signals:
  SIGTERM  end the daemon alone: replicas and router go on, the next gpuserved adopts them
  SIGINT   drain and stop everything; a second one stops at once
  SIGHUP   read configuration, keys and profiles again
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="gpuserved", description="One machine, many GPUs, one URL: the daemon in the foreground.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "--config", metavar="FILE", help="the daemon's file (default: gpuserved.toml in the config folder)"
    )
    made.add_argument("--profiles", metavar="DIR", help="apply every profile in this folder at start")
    made.add_argument("--listen", metavar="HOST:PORT", help="address of the one URL (default 127.0.0.1:8000)")
    made.add_argument("--keys-file", metavar="FILE", help="hashed API keys")
    made.add_argument("--insecure", action="store_true", help="serve other machines without keys")
    made.add_argument("--background", action="store_true", help="started by `gpuserve up`: log to a file")
    made.add_argument(
        "--check",
        action="store_true",
        help="read configuration and state, say the version, and start nothing",
    )
    made.add_argument("--version", action="version", version=f"gpuserved {gpuserved.__version__}")
    return made


def configuration(args: argparse.Namespace, roots: Roots) -> tuple[DaemonConfig, Path | None]:
    """The daemon's configuration and the file it came from; flags beat the file.

    :raises Invalid: naming file, line and key.
    """
    default = roots.config / "gpuserved.toml"
    path = Path(args.config) if args.config else (default if default.exists() else None)
    config = load_daemon_config(path).with_flags(
        listen=args.listen, keys_file=args.keys_file, insecure=args.insecure
    )
    return config.with_default_keys(roots.config).checked(), path


def set_up_logging(roots: Roots, *, background: bool) -> None:
    """One line an event: to stderr, or in the background to a file under a size cap."""
    handler: logging.Handler = logging.StreamHandler()
    if background:
        handler = logging.handlers.RotatingFileHandler(
            roots.log / "daemon.log", maxBytes=LOG_MAX_BYTES, backupCount=LOG_KEEP
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def main(argv: list[str] | None = None) -> int:
    """Run until told to end."""
    args = parser().parse_args(argv)
    roots = from_environment(os.environ, uid=os.getuid())
    try:
        failpoint.arm_from(os.environ)
        for folder in (roots.run, roots.state, roots.log, roots.cache):
            make_private(folder)
        config, path = configuration(args, roots)
        from gpuserved.app.daemon import check, live  # after the arguments: --help needs no event loop

        if args.check:
            check(roots)
            print(f"gpuserved {gpuserved.__version__}")
            return 0
        set_up_logging(roots, background=args.background)
        return live(roots, config, args, path)
    except GpuserveError as error:
        print(f"gpuserved: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
