"""Making an API key: shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.config.daemon import read_keys

_PREFIX = "gs-"
_RANDOM_BYTES = 32


def generate_key(path: Path) -> str:
    """Add a new key to a keys file, which is made where it is not there.

    :returns: the key itself, which is nowhere else.
    :raises Invalid: the file cannot be written, or is no keys file.
    """
    taken = {key.name for key in read_keys(path)} if path.exists() else set()
    name = next(name for number in range(1, len(taken) + 2) if (name := f"key-{number}") not in taken)
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            whole = size == 0 or file.read(1) == b"\n"
            file.write((line if whole else "\n" + line).encode())
    except OSError as error:
        raise Invalid(f"{path}: cannot be written: {error.strerror}", "choose another --keys-file") from None
    return key
