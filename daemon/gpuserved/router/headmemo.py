"""The last head of a connection: on one connection heads repeat, but for the length of the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from gpuserved.router.edge import RequestHead, ResponseHead
from gpuserved.router.fields import Field

Head = TypeVar("Head", RequestHead, ResponseHead)
_DIGITS_MAX = 18
"""As `edge` reads them."""


class HeadMemo(Generic[Head]):
    """Parses heads; one that differs from the last in nothing but the number after `separator` is not parsed again.

    That number is the only thing a parser makes of the bytes that differ: the head before was accepted, so it has one such
    line, here, and no other length. A connection's memo dies with it, and so does what it holds of keys.
    """

    __slots__ = ("_after", "_before", "_head", "_length", "_parse", "_separator")

    def __init__(self, parse: Callable[[bytes], Head], separator: bytes) -> None:
        """:param separator: CRLF, name, colon and space of the length's line as most peers write it."""
        self._parse: Callable[[bytes], Head] = parse
        self._separator = separator
        self._before = self._length = self._after = b""
        self._head: Head | None = None

    def read(self, raw: bytes) -> Head:
        """As `parse`, which see. `raw` ends with the head's empty line."""
        before, _, rest = raw.partition(self._separator)
        length, _, after = rest.partition(b"\r\n")
        head = self._head
        if head is not None and before == self._before and after == self._after:
            if length == self._length:
                return head
            if head.content_length and length.isdigit() and len(length) <= _DIGITS_MAX:
                fresh: Head = msgspec.structs.replace(
                    head, content_length=int(length), fields=_with_length(head.fields, length)
                )
                self._length, self._head = length, fresh
                return fresh
        head = self._parse(raw)
        self._before, self._length, self._after, self._head = before, length, after, head
        return head


def _with_length(fields: list[Field], length: bytes) -> list[Field]:
    return [
        Field(field.name, length, field.role, b"", b"") if field.role == b"content-length" else field
        for field in fields
    ]
