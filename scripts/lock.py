# ruff: noqa: INP001 - a program of its own, not part of a package
"""Write requirements/*.lock.txt: every package with its version and the hashes of all its files, and no index.

Usage: make lock. Needs pip-tools and tomli in the running environment, which must be Python 3.11 or newer: on
3.10 the packages that only it needs would be locked twice.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomli

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
RUNTIME_LOCK = REQUIREMENTS / "runtime.lock.txt"
DEV_LOCK = REQUIREMENTS / "dev.lock.txt"
CONSTRAINTS = ("-c", "requirements/constraints.in")
HEADER = "# Written by `make lock`. Do not edit.\n"
COMPILE = [
    sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--strip-extras", "--no-header",
    "--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links", "--no-emit-options", "--annotation-style", "line",
]  # fmt: skip


def compile_lock(target: Path, *sources: str) -> None:
    """Resolve `sources` into `target`, keeping the versions that `target` already names where they still fit."""
    subprocess.run([*COMPILE, "--output-file", str(target.relative_to(ROOT)), *sources], cwd=ROOT, check=True)
    lock = target.read_text()
    target.write_text(lock if lock.startswith(HEADER) else HEADER + lock)


def dev_group() -> list[str]:
    """The dependency group `dev` of pyproject.toml, which pip of 2023 cannot read by itself."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text())
    return list(project["dependency-groups"]["dev"])


def lock_for_python310(requirement: str) -> str:
    """The lock's entry for a package that only Python 3.10 needs."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*fetch, "--only-binary=:all:", "--python-version=3.10", requirement], check=True)
        (wheel,) = Path(folder).iterdir()
        name, version = wheel.name.split("-")[:2]
        hashed = subprocess.run(
            [sys.executable, "-m", "pip", "hash", str(wheel)], check=True, capture_output=True, text=True
        )
    digest = re.search(r"--hash=sha256:[0-9a-f]{64}", hashed.stdout)
    if digest is None:
        raise SystemExit(f"pip hash gave no digest for {wheel.name}")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return f'{normal}=={version} ; python_version < "3.11" \\\n    {digest[0]}\n'


def main() -> None:
    """Write both locks."""
    compile_lock(RUNTIME_LOCK, "--extra=demo", "pyproject.toml", "requirements/runtime.in", *CONSTRAINTS)
    with tempfile.NamedTemporaryFile("w", suffix=".in", dir=REQUIREMENTS, delete=False) as group:
        group.write("\n".join(["-c runtime.lock.txt", *dev_group(), ""]))
    try:
        compile_lock(DEV_LOCK, str(Path(group.name).relative_to(ROOT)), *CONSTRAINTS)
    finally:
        Path(group.name).unlink()
    dev = DEV_LOCK.read_text()
    DEV_LOCK.write_text(
        dev.replace(str(Path(group.name).relative_to(ROOT)), "pyproject.toml [dependency-groups] dev")
    )
    lines = (REQUIREMENTS / "python310.in").read_text().splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    extra = [lock_for_python310(name) for name in wanted if name]
    with RUNTIME_LOCK.open("a") as lock:
        lock.write("".join(extra))


if __name__ == "__main__":
    main()
