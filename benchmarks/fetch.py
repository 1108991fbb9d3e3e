"""Programs that are measured but not ours: found on this machine, or brought into .bench."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".bench"
VLLM_ROUTER = "vllm-router==0.1.17"
_DEBIAN = ("nginx", "haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")


class Missing(Exception):
    """A candidate that cannot be had here; says why, and what would help."""


def _run(argv: list[str], cwd: Path | None = None, timeout_s: float = 600) -> str:
    """The output of a command.

    :raises Missing: it is not there, or failed.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise Missing(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(argv[:3])} did not end within {timeout_s:g} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        raise Missing(f"{' '.join(argv[:3])}: {said[-1] if said else error.returncode}") from None
    return done.stdout + done.stderr


def compiled(sources: Path) -> dict[str, Path]:
    """The C programs of a folder by name, compiled anew where their source is newer."""
    CACHE.mkdir(exist_ok=True)
    made = {}
    for source in sorted(sources.glob("*.c")):
        program = CACHE / source.stem
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            try:
                _run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)])
            except Missing as why:
                sys.exit(
                    f"the load programs need a C compiler: {why} (Debian: apt-get install gcc libc6-dev)"
                )
        made[source.stem] = program
    return made


def debian(program: str) -> tuple[Path, dict[str, str]]:
    """(path, environment) of nginx or haproxy: installed, or unpacked from Debian's package without installing it.

    :raises Missing: neither.
    """
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found:
        return Path(found), {}
    root = CACHE / "debian"
    path = root / "usr" / "sbin" / program
    if not path.exists():
        _unpack(root)
    if not path.exists():
        raise Missing(f"Debian's packages brought no {program}; install it: apt-get install {program}")
    libraries = ":".join(str(folder) for folder in sorted((root / "usr" / "lib").glob("*-linux-gnu")))
    return path, {"LD_LIBRARY_PATH": libraries}


def _unpack(root: Path) -> None:
    debs = CACHE / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    try:
        _run(["apt-get", "download", *_DEBIAN], cwd=debs)
    except Missing:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update"])  # a fresh container has no package lists
        _run(["apt-get", "download", *_DEBIAN], cwd=debs)
    for deb in debs.glob("*.deb"):
        _run(["dpkg", "-x", str(deb), str(root)])


def vllm_router() -> Path:
    """vllm-router's program, in an environment of its own.

    :raises Missing: it could not be installed.
    """
    home = CACHE / "vllm-router"
    program = home / "bin" / "vllm-router"
    if not program.exists():
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "pip"), "--quiet", "--disable-pip-version-check", "install", VLLM_ROUTER])
    return program


def version(argv: list[str], environment: dict[str, str] | None = None) -> str:
    """The first line a program says of its version."""
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return (done.stdout + done.stderr).strip().splitlines()[0]


def revision(repository: Path) -> str:
    """Short commit of a checkout, `+` where it has changes that are not committed."""
    try:
        commit = _run(["git", "-C", str(repository), "rev-parse", "--short", "HEAD"]).strip()
        dirty = _run(["git", "-C", str(repository), "status", "--porcelain"]).strip()
    except Missing:
        return "unknown"
    return commit + ("+" if dirty else "")


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"
