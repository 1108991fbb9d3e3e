"""vLLM: where it is, which version, and whether its torch was built for this driver."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import tomli

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError
from gpuserved.cli.doctor.base import Finding, Host, fail, ok, warn
from gpuserved.cli.doctor.gpu import driver_cuda
from gpuserved.engines.installed import expand, find_program, site_folders, version_of
from gpuserved.engines.vllm.adapter import SUPPORTED
from gpuserved.engines.vllm.flags import DISTRIBUTIONS, cached

NAME = "vllm"
_INSTALL = "python3 -m venv /opt/vllm && /opt/vllm/bin/pip install 'vllm>={}.{},<{}.{}'"
_CUDA = re.compile(r"^cuda[^=\n]*=\s*['\"](\d+)\.(\d+)", re.MULTILINE)
_VERSION = re.compile(r"(\d+)\.(\d+)")


def check(host: Host) -> list[Finding]:
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
        found.append(fail(NAME, text, install) if driver_cuda() else warn(NAME, text, install))
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
        return [fail(NAME, f"{python} ({why}) cannot be run", install)]
    version = version_of(python, *DISTRIBUTIONS)
    if version is None:
        return [fail(NAME, f"{python} ({why}) has no vLLM", f"{python} -m pip install vllm")]
    known = (
        "flags known" if cached(python, host.roots.cache) else "its flags are asked for at the first apply"
    )
    text = f"vLLM {version} in {python} ({why}); {known}"
    number = _VERSION.match(version)
    low, high = SUPPORTED
    if number and not low <= (int(number[1]), int(number[2])) <= high:
        return [warn(NAME, f"{text}; {low[0]}.{low[1]} to {high[0]}.{high[1]} are supported", install)]
    return [ok(NAME, text), *_torch(python)]


def _torch(python: str) -> list[Finding]:
    """CUDA runs on a driver of the same major version or a newer one (CUDA's minor version compatibility)."""
    driver = driver_cuda()
    built = _torch_cuda(python)
    if driver is None or built is None:
        return []
    if not built:
        return [
            fail(
                NAME,
                f"the torch in {python} is a CPU build, and this host has GPUs",
                f"{python} -m pip install --force-reinstall vllm",
            )
        ]
    text = f"torch is built for CUDA {built[0]}.{built[1]}, the driver runs up to {driver[0]}.{driver[1]}"
    if built[0] > driver[0]:
        return [fail(NAME, text, "update the NVIDIA driver, or install a vLLM built for an older CUDA")]
    return [ok(NAME, text)]


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
