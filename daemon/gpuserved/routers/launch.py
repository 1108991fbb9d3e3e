"""Start a router under a shim of its own."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

import gpuserved
from gpuserved.api.roots import Roots
from gpuserved.host.shimclient import LOG_KEEP, LOG_MAX_BYTES, Started, launch, router_spec
from gpuserved.routers.place import RouterPlace


async def launch_router(
    roots: Roots, place: RouterPlace, listener: socket.socket, *, access_log: Path | None, shared: bool
) -> Started:
    """Start one on this socket, in its place, which is prepared, of this daemon's version.

    :param shared: others of its generation take connections from the same socket.
    :raises ShimError: it could not be started.
    """
    argv = [sys.executable, "-m", "gpuserved.router", "--fd", "3", "--table", str(roots.run / "routing.json")]
    argv += ["--control", str(place.control)]
    if shared:
        argv += ["--counts", str(place.counts), "--row", str(place.row)]
    if access_log is not None:
        argv += ["--access-log", str(access_log)]
    spec = router_spec(
        name=f"router-{place.row}",
        nonce=secrets.token_hex(6),
        folder=place.folder,
        argv=tuple(argv),
        env=_environment(),
        cwd="/",
        log_path=roots.log / (f"router-{place.row}.log" if place.row else "router.log"),
        log_max_bytes=LOG_MAX_BYTES,
        log_keep=LOG_KEEP,
        listen_fd=listener.fileno(),
    )
    return await launch(spec, pass_fds=(listener.fileno(),))


def _environment() -> dict[str, str]:
    """What the router's interpreter needs to find itself; nothing else of ours, no secret."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
        if name in os.environ
    }
    source = os.path.dirname(os.path.dirname(gpuserved.__file__))
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))}
