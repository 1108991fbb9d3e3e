"""NDJSON framing with a cap: one JSON object a line, at most 64 KiB."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself costs half a megabyte of memory per shim
    from typing import Any

VERSION = 1
MAX_LINE_BYTES = 64 * 1024


class BrokenLine(Exception):
    """What came is not one JSON object of at most 64 KiB; its sender is dropped."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One object.

    :raises BrokenLine: not JSON, not UTF-8, nested too deep, or not an object.
    """
    try:
        message = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BrokenLine(str(error)) from None
    if not isinstance(message, dict):
        raise BrokenLine("not an object")
    return message


class LineBuffer:
    """Cuts what arrives into lines."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, blank ones left out.

        :raises BrokenLine: a line longer than the cap, complete or not.
        """
        self._pending += data
        *lines, rest = self._pending.split(b"\n")
        if len(rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise BrokenLine(f"a line longer than {MAX_LINE_BYTES} bytes")
        self._pending = rest
        return [bytes(line) for line in lines if line.strip()]
