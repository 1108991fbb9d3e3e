"""The environment an engine starts with: whole, minimal, and free of what would open or break a replica."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gpuserved.engines.base import LaunchContext

_BASE = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_NETWORK = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)
"""Without these a host behind a proxy cannot reach the model hub. Lower-case spellings count too."""
_TEMP_MAX_CHARS = 60
"""vLLM puts `ipc://TMPDIR/UUID` sockets there; a longer folder would pass the 107 bytes of a socket path."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def child_environment(
    context: LaunchContext,
    environ: Mapping[str, str],
    *,
    pass_prefixes: tuple[str, ...] = (),
    never: frozenset[str] = frozenset(),
    bin_dir: str | None = None,
) -> dict[str, str]:
    """The whole environment of one engine process.

    :param environ: the daemon's own environment; only what the engine needs is taken from it.
    :param pass_prefixes: names that start so are taken too, except those in `never`.
    :param bin_dir: put first in PATH: compilers that engines call (ninja) live beside their interpreter.
    """
    env = {name: environ[name] for name in _BASE if name in environ}
    for name in _NETWORK:
        env.update({spelt: environ[spelt] for spelt in (name, name.lower()) if spelt in environ})
    env.update({k: v for k, v in environ.items() if k.startswith(pass_prefixes) and k not in never})
    env.setdefault("HOME", str(context.cache_dir))
    env.setdefault("LANG", "C.UTF-8")
    env.setdefault("PATH", DEFAULT_PATH)
    if bin_dir:
        env["PATH"] = os.pathsep.join([bin_dir, env["PATH"]])
    if 0 < len(environ.get("TMPDIR", "")) <= _TEMP_MAX_CHARS:
        env["TMPDIR"] = environ["TMPDIR"]
    env["PYTHONUNBUFFERED"] = "1"
    return env


def finish(env: dict[str, str], context: LaunchContext) -> dict[str, str]:
    """Add the profile's own variables, then those that no profile may change: the GPUs and the marks of this start."""
    env.update(context.profile.env)
    env.update(gpu_environment(context))
    env["GPUSERVE_NONCE"] = context.nonce
    env["GPUSERVE_REPLICA"] = context.replica
    env["GPUSERVE_GENERATION"] = str(context.generation)
    return env


def gpu_environment(context: LaunchContext) -> dict[str, str]:
    """Which GPUs the process sees: indexes in PCI order, but MIG devices by UUID, the only name CUDA knows them by."""
    if not context.gpu_indexes and not context.gpu_uuids:
        return {}
    by_uuid = not context.gpu_indexes or any(uuid.startswith("MIG-") for uuid in context.gpu_uuids)
    names = context.gpu_uuids if by_uuid else tuple(str(index) for index in context.gpu_indexes)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}
