"""A small JSON document on disk that survives a crash at any instant, and says so when it did not survive the disk."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.host.failpoint import reach

_HEAD_MAX_BYTES = 4096


@dataclass(frozen=True)
class Loaded:
    """What `load` found. `problem` names what was set aside; None: all well."""

    data: dict[str, Any] | None
    problem: str | None = None


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` so that a reader sees the old bytes or the new ones, also after a power cut.

    :raises OSError: the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            reach("save.opened")
            file.write(content)
            file.flush()
            reach("save.written")
            os.fsync(file.fileno())
        reach("save.synced")
        os.replace(temporary, path)
        reach("save.renamed")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    reach("save.done")


def discard_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`; call only where no other process writes there."""
    for path in folder.glob(".*"):
        if path.suffix[1:].isdigit() and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def save(path: Path, data: dict[str, Any], *, version: int) -> None:
    """Write `data` with its checksum and schema version; the file before it stays as `.prev`."""
    body = json.dumps(data, sort_keys=True, separators=(",", ":"))
    head = json.dumps({"version": version, "crc32": zlib.crc32(body.encode())})
    if path.exists():
        previous = path.with_name(path.name + ".prev")
        previous.unlink(missing_ok=True)
        reach("save.unlinked")
        os.link(path, previous)
        reach("save.linked")
    write_atomically(path, f"{head}\n{body}\n".encode())


def load(path: Path, *, version: int, touch: bool = True) -> Loaded:
    """Read what `save` wrote; a damaged file is set aside as `.damaged` and its `.prev` is taken.

    :param touch: False: a damaged file stays where it is; the caller is not its owner.
    :raises Invalid: the file was written by a newer version: nothing is touched.
    """
    problem = None
    for candidate in (path, path.with_name(path.name + ".prev")):
        try:
            fd = os.open(candidate, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = problem or f"{candidate} cannot be read: {error.strerror}"
            continue
        with os.fdopen(fd, "rb") as file:
            raw = file.read()
        try:
            return Loaded(_parse(raw, candidate, version), problem)
        except ValueError as error:
            problem = problem or f"{candidate} is damaged ({error}); set aside as {candidate.name}.damaged"
            if touch:
                os.replace(candidate, candidate.with_name(candidate.name + ".damaged"))
    return Loaded(None, problem)


def check_version(path: Path, *, version: int) -> None:
    """Look at the header alone; nothing is set aside.

    :raises Invalid: the file was written by a newer version.
    """
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline(_HEAD_MAX_BYTES))
    except (OSError, ValueError):
        return  # `load` knows what to do with it
    if isinstance(head, dict) and isinstance(head.get("version"), int):
        _refuse_newer(path, head["version"], version)


def _refuse_newer(path: Path, found: int, known: int) -> None:
    if found > known:
        raise Invalid(
            f"{path} was written by a newer gpuserve (schema {found}, this one knows {known})",
            hint="start the newer version again, or move the file away: running replicas are found without it",
        )


def _parse(raw: bytes, path: Path, version: int) -> dict[str, Any]:
    first, _, rest = raw.partition(b"\n")
    body = rest.rstrip(b"\n")
    head = json.loads(first)
    if not isinstance(head, dict) or not isinstance(head.get("version"), int):
        raise ValueError("no header")  # noqa: TRY004 - a damaged file, not a caller's type error
    if head.get("crc32") != zlib.crc32(body):
        raise ValueError("checksum")
    _refuse_newer(path, head["version"], version)
    data = json.loads(body)
    if not isinstance(data, dict):
        raise ValueError("not an object")  # noqa: TRY004 - a damaged file, not a caller's type error
    return data
