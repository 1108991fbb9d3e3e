"""TOML text from values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gpuserved.core.profile import FlagValue

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else c for c in escaped) + '"'


def literal(value: FlagValue) -> str:
    """One value, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        text = repr(value)
        return text if any(c in text for c in ".en") else f"{text}.0"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{name(key)} = {literal(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(literal(inner) for inner in value) + "]"
    return str(value)


def name(key: str) -> str:
    """A key, quoted where it must be."""
    return key if _BARE.fullmatch(key) else quoted(key)


def line(key: str, value: FlagValue, comment: str | None = None) -> str:
    """`key = value`, and why."""
    written = f"{name(key)} = {literal(value)}"
    return f"{written}   # {comment}" if comment else written
