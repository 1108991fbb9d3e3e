"""vLLM: where it is, which version, whether its torch was built for this driver; and the hub its models come from.

A token's text goes nowhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path

import tomli

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError
from gpuserved.cli.doctor.base import GIB, Finding, Host, fail, gib, ok, warn
from gpuserved.cli.doctor.gpu import driver_cuda
from gpuserved.engines.installed import expand, find_program, site_folders, version_of
from gpuserved.engines.vllm.adapter import SUPPORTED
from gpuserved.engines.vllm.flags import DISTRIBUTIONS, cached
from gpuserved.planning.hub import hub_cache

_VLLM = "vllm"
_INSTALL = "python3 -m venv /opt/vllm && /opt/vllm/bin/pip install 'vllm>={}.{},<{}.{}'"
_CUDA = re.compile(r"^cuda[^=\n]*=\s*['\"](\d+)\.(\d+)", re.MULTILINE)
_VERSION = re.compile(r"(\d+)\.(\d+)")

_HUB = "hub"
_LOOK_S = 0.7
"""A cache on a network disk is not counted to its end."""
_ROOM_BYTES = 20 * GIB
"""An 8B model in 16 bits, with something to spare."""


def vllm(host: Host) -> list[Finding]:
    """The vLLM in PATH, and each one that a profile's `python` names."""
    low, high = SUPPORTED
    install = _INSTALL.format(*low, high[0], high[1] + 1)
    found: list[Finding] = []
    program = find_program("vllm", host.env, beside=sys.executable)
    named = {}
    if program is not None:
        named[program.python] = program.path
    for name, text in _profiles(host).items():
        python = _python_of(text)
        if python is not None:
            named.setdefault(expand(python), f"python of {name}")
    for python, why in named.items():
        found += _environment(python, why, host, install)
    if program is None and not named:
        text = "no vllm in PATH, and no profile names a python"
        found.append(fail(_VLLM, text, install) if driver_cuda() else warn(_VLLM, text, install))
    return found


def _profiles(host: Host) -> dict[str, str]:
    """Profiles of the configuration folder, and those that a daemon serves, by name."""
    found: dict[str, str] = {}
    for path in host.profiles:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found[path.stem] = path.read_text("utf-8")
    with contextlib.suppress(GpuserveError):
        served = ControlClient(host.socket).profiles().profiles
        found |= {one.name: one.applied_text for one in served if one.applied_text is not None}
    return found


def _python_of(text: str) -> str | None:
    try:
        found = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return None
    python = found.get("python")
    return python if isinstance(python, str) and found.get("engine", "vllm") == "vllm" else None


def _environment(python: str, why: str, host: Host, install: str) -> list[Finding]:
    if not os.access(python, os.X_OK):
        return [fail(_VLLM, f"{python} ({why}) cannot be run", install)]
    version = version_of(python, *DISTRIBUTIONS)
    if version is None:
        return [fail(_VLLM, f"{python} ({why}) has no vLLM", f"{python} -m pip install vllm")]
    known = (
        "flags known" if cached(python, host.roots.cache) else "its flags are asked for at the first apply"
    )
    text = f"vLLM {version} in {python} ({why}); {known}"
    number = _VERSION.match(version)
    low, high = SUPPORTED
    if number and not low <= (int(number[1]), int(number[2])) <= high:
        return [warn(_VLLM, f"{text}; {low[0]}.{low[1]} to {high[0]}.{high[1]} are supported", install)]
    return [ok(_VLLM, text), *_torch(python)]


def _torch(python: str) -> list[Finding]:
    """CUDA runs on a driver of the same major version or a newer one (CUDA's minor version compatibility)."""
    driver = driver_cuda()
    built = _torch_cuda(python)
    if driver is None or built is None:
        return []
    if not built:
        return [
            fail(
                _VLLM,
                f"the torch in {python} is a CPU build, and this host has GPUs",
                f"{python} -m pip install --force-reinstall vllm",
            )
        ]
    text = f"torch is built for CUDA {built[0]}.{built[1]}, the driver runs up to {driver[0]}.{driver[1]}"
    if built[0] > driver[0]:
        return [fail(_VLLM, text, "update the NVIDIA driver, or install a vLLM built for an older CUDA")]
    return [ok(_VLLM, text)]


def _torch_cuda(python: str) -> tuple[int, ...] | None:
    """(major, minor); empty for a CPU build; None where there is no torch, or it does not tell."""
    for folder in site_folders(python):
        try:
            text = (Path(folder) / "torch" / "version.py").read_text("utf-8")
        except OSError:
            continue
        found = _CUDA.search(text)
        if found:
            return int(found[1]), int(found[2])
        return () if re.search(r"^cuda[^=\n]*=\s*None", text, re.MULTILINE) else None
    return None


def hub(host: Host) -> list[Finding]:
    """Where models are looked for and put."""
    cache = hub_cache(host.env)
    return [*_hub_cache(cache, offline=_offline(host)), _hub_token(host)]


def _offline(host: Host) -> bool:
    return host.env.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def _hub_cache(cache: Path, *, offline: bool) -> list[Finding]:
    above = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not cache.is_dir():
        if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
            return [
                fail(_HUB, f"{cache} is not there and cannot be made", f"sudo install -d -o $USER {cache}")
            ]
        text, size = f"{cache} does not exist yet", None
    else:
        if not os.access(cache, os.R_OK | os.X_OK):
            return [fail(_HUB, f"{cache} cannot be read by this user", f"sudo chown -R $USER {cache}")]
        if not os.access(cache, os.W_OK) and not offline:
            return [
                fail(
                    _HUB,
                    f"{cache} cannot be written by this user",
                    f"sudo chown -R $USER {cache}, or export HF_HUB_OFFLINE=1",
                )
            ]
        count = sum(1 for one in cache.glob("models--*"))
        size, whole = _size(cache)
        text = f"{cache}: {count} models, {'' if whole else 'at least '}{gib(size)}"
    free = shutil.disk_usage(above).free
    text += f", {gib(free)} free" + (", offline" if offline else "")
    if free < _ROOM_BYTES and not offline:
        return [
            warn(
                _HUB,
                f"{text}: no room for another model",
                "hf cache prune, or export HF_HUB_CACHE=/a/larger/disk",
            )
        ]
    return [ok(_HUB, text)]


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes on disk, and whether everything was counted. Snapshots are links into blobs and count nothing."""
    end = time.monotonic() + _LOOK_S
    total, waiting = 0, [folder]
    while waiting:
        if time.monotonic() > end:
            return total, False
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total, True


def _hub_token(host: Host) -> Finding:
    """Where a token is found, and who may read it."""
    home = Path(
        host.env.get("HF_HOME") or Path(host.env.get("HOME", "/")) / ".cache" / "huggingface"
    ).expanduser()
    places = [
        (host.config.hf_token_file, "hf_token_file"),
        (
            Path(host.env["HF_TOKEN_PATH"]) if host.env.get("HF_TOKEN_PATH") else home / "token",
            "the hub's own file",
        ),
    ]
    for path, what in places:
        if path is None:
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            if what == "hf_token_file":
                return fail(_HUB, f"hf_token_file {path} cannot be read", f"install -m 600 /dev/stdin {path}")
            continue
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            return fail(_HUB, f"the token in {path} can be read by everybody", f"chmod 600 {path}")
        return ok(_HUB, f"token in {path} ({what})")
    if host.env.get("HF_TOKEN"):
        return warn(_HUB, "HF_TOKEN is set here, and a daemon's replicas do not inherit it",
                    "write it into a file of mode 600, and set [supervisor] hf_token_file")  # fmt: skip
    return ok(_HUB, "no token: gated models cannot be downloaded")
