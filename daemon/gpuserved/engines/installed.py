"""What is installed in an interpreter's environment, found by looking at files: importing vLLM takes ten seconds."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ASK_TIMEOUT_S = 10.0
_DIST_INFO = re.compile(r"^(?P<name>.+)-(?P<version>[^-]+)\.dist-info$")


@dataclass(frozen=True)
class Program:
    """A command found in PATH and the interpreter that runs it."""

    path: str
    python: str


def expand(path: str) -> str:
    """`~` replaced."""
    return os.path.expanduser(path)


def looks_like_path(model: str) -> bool:
    """True where a model name can only mean a folder or file of this host, or is one."""
    return model.startswith((".", "/", "~")) or ("/" in model and os.path.exists(model))


def find_program(name: str, environ: Mapping[str, str], *, beside: str) -> Program | None:
    """`name` in PATH, else in the folder of the interpreter `beside`; with the interpreter its first line names."""
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    if found is None:
        found = shutil.which(name, path=os.path.dirname(beside))
    if found is None:
        return None
    return Program(found, _interpreter_of(found))


def _interpreter_of(script: str) -> str:
    with open(script, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!"):
        words = first[2:].decode(errors="replace").split()
        if words and "python" in os.path.basename(words[0]) and os.access(words[0], os.X_OK):
            return words[0]
    # A launcher of another kind (a long path makes installers write /bin/sh): its environment has a python beside it.
    return os.path.join(os.path.dirname(script), "python")


@dataclass(frozen=True)
class Installed:
    """One distribution in an environment. Two of one version differ where it was installed again."""

    name: str
    version: str
    written_ns: int
    """When its metadata was written: wheels of one version (nightly builds, a local patch) need not be the same."""


def installed(python: str, *names: str) -> Installed | None:
    """The first of these distributions that `python`'s environment holds; None: none of them."""
    for name in names:
        wanted = _canonical(name)
        for folder in site_folders(python):
            for entry in _dist_infos(folder):
                found = _DIST_INFO.match(entry)
                if found and _canonical(found["name"]) == wanted:
                    return Installed(name, found["version"], _written_ns(folder, entry))
    return None


def version_of(python: str, *names: str) -> str | None:
    """The version of the first of these distributions that `python`'s environment holds; None: none of them."""
    found = installed(python, *names)
    return found.version if found is not None else None


def _written_ns(folder: str, entry: str) -> int:
    # Not the folder's own time: a program that only reads may leave a cache file in it.
    for name in ("RECORD", "METADATA"):
        try:
            return os.stat(os.path.join(folder, entry, name)).st_mtime_ns
        except OSError:
            continue
    return 0


def has_module(python: str, module: str) -> bool:
    """True where a package or module of this name lies in `python`'s environment."""
    return any(
        (Path(folder) / module / "__init__.py").is_file() or (Path(folder) / f"{module}.py").is_file()
        for folder in site_folders(python)
    )


def site_folders(python: str) -> tuple[str, ...]:
    """The folders where `python` finds installed packages; empty where it does not run."""
    try:
        stat = os.stat(python)
    except OSError:
        return ()
    return _ask(python, stat.st_mtime_ns, os.path.abspath(python))


@functools.lru_cache(maxsize=32)
def _ask(python: str, _mtime_ns: int, _absolute: str) -> tuple[str, ...]:
    # -S would hide site-packages and -I hides PYTHONPATH, which an engine does not inherit either.
    code = "import sys; print('\\n'.join(p for p in sys.path if p))"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code],
            capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line for line in done.stdout.splitlines() if os.path.isdir(line))


def _dist_infos(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".dist-info")]
    except OSError:
        return []


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
