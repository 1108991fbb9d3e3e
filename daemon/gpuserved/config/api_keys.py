"""The keys file: hashed API keys and what each of them may use."""

from __future__ import annotations

import re
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.routing import ApiKey

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LINE = re.compile(rf"({NAME.pattern}):([0-9a-fA-F]{{64}})((?:\s+[a-z_]+=[0-9]{{1,12}})*)")
LIMITS = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute", "tpd": "tokens_per_day"}
"""As they are written in the file, and as the routing table names them."""


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file: `NAME:SHA256HEX [rpm=N] [tpm=N] [tpd=N]` a line, blank lines and `#` lines between.

    :raises Invalid: unreadable, or a line of another form (its text is not repeated: it may be a key).
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise Invalid(f"{path}: the keys file cannot be read: {error.strerror}", "check keys_file") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path}: the keys file cannot be read: not plain text", "check keys_file") from None
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            key = _read(stripped, path, number)
            if any(other.name == key.name for other in keys):
                raise Invalid(
                    f"{path}:{number}: the name {key.name} is used twice", "give every key its own name"
                )
            keys.append(key)
    return keys


def _read(line: str, path: Path, number: int) -> ApiKey:
    found = _LINE.fullmatch(line)
    if found is None:
        raise Invalid(
            f"{path}:{number}: expected NAME:SHA256, the hash as 64 hex digits, and limits as in rpm=60",
            "gpuserve keys add NAME writes such a line; printf %s KEY | sha256sum makes the hash",
            {"file": str(path), "line": number},
        )
    limits: dict[str, int] = {}
    for word in found[3].split():
        name, _, value = word.partition("=")
        if name not in LIMITS or name in limits or not int(value):
            raise Invalid(
                f"{path}:{number}: {word} is no limit",
                "write rpm=N (requests a minute), tpm=N or tpd=N (tokens a minute, a day), each once and above 0",
                {"file": str(path), "line": number},
            )
        limits[name] = int(value)
    return ApiKey(
        name=found[1], sha256=found[2].lower(), requests_per_minute=limits.get("rpm"),
        tokens_per_minute=limits.get("tpm"), tokens_per_day=limits.get("tpd"),
    )  # fmt: skip
