"""The top level of a large JSON object, read in short steps: which value each wanted key has, and where. Pure.

A whole parse of 64 MiB holds the caller up for as long as 300 ms. This one stops after each step, and looks into nothing below the
top level: that is the engine's to refuse.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Generator

STEP_BYTES = 16 * 1024
"""A few milliseconds of work, whatever is in it."""
DEPTH_MAX = 10_000
KEYS_MAX = 1024
"""At the top level; the APIs know fewer than a hundred."""
_JUMP_BYTES = 1024 * 1024
_KEY_MAX_BYTES = 4096
_ROUNDS_MAX = 16

_SPACE = re.compile(rb"[ \t\n\r]{0,65536}")
_SCALAR = re.compile(rb"[-+0-9.a-zA-Z]{1,64}")
_STRING_PART = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_OPEN, _CLOSE, _QUOTE, _BACKSLASH = b"[{", b"]}", ord('"'), ord("\\")

Buffer = bytes | mmap.mmap
Steps = Generator[None, None, int]
Spans = dict[bytes, tuple[int, int]]


class NotJson(ValueError):
    """Says what is wrong, and where."""


def spans(data: Buffer, wanted: frozenset[bytes]) -> Generator[None, None, Spans]:
    """Where the values of the wanted keys are, quotes included; of a key that comes twice the last one counts, as it does for
    every parser that engines use. Yields after each step; the generator's return value is the answer.

    :param wanted: keys as they are written, quotes and all; one that is written with escapes is not found.
    :raises NotJson: not an object, or broken at its top level.
    """
    found: Spans = {}
    at = _space(data, 0)
    if data[at : at + 1] != b"{":
        raise NotJson("it is not an object")
    at = _space(data, at + 1)
    if data[at : at + 1] == b"}":
        at += 1
    else:
        for _ in range(KEYS_MAX):
            start = at
            if data[at : at + 1] != b'"':
                raise NotJson(f"a key is expected at byte {at}")
            at = yield from _string(data, at + 1)
            key = data[start:at] if at - start <= _KEY_MAX_BYTES else b""
            at = _space(data, at)
            if data[at : at + 1] != b":":
                raise NotJson(f"a colon is expected at byte {at}")
            start = _space(data, at + 1)
            at = yield from _value(data, start)
            if key in wanted:
                found[key] = (start, at)
            at = _space(data, at)
            mark = data[at : at + 1]
            at += 1
            if mark == b"}":
                break
            if mark != b",":
                raise NotJson(f"a comma or the end is expected at byte {at - 1}")
            at = _space(data, at)
        else:
            raise NotJson(f"it has more than {KEYS_MAX} keys")
    at = _space(data, at)
    if at != len(data):
        raise NotJson(f"something follows the object at byte {at}")
    return found


def _space(data: Buffer, at: int) -> int:
    found = _SPACE.match(data, at)
    assert found is not None
    return found.end()


def _value(data: Buffer, at: int) -> Steps:
    first = data[at : at + 1]
    if first == b'"':
        return (yield from _string(data, at + 1))
    if first and first in _OPEN:
        return (yield from _container(data, at + 1))
    found = _SCALAR.match(data, at)
    if found is None:
        raise NotJson(f"a value is expected at byte {at}")
    return found.end()


def _string(data: Buffer, at: int) -> Steps:
    """The end of a string that began before `at`."""
    size = len(data)
    while at < size:
        end = min(at + _JUMP_BYTES, size)
        quote = data.find(b'"', at, end)
        escape = data.find(b"\\", at, quote if quote >= 0 else end)
        if escape < 0:
            if quote >= 0:
                return quote + 1
            at = end
        else:
            found = _STRING_PART.match(data, escape, min(escape + STEP_BYTES, size))
            assert found is not None
            at = found.end()
            if at < size and data[at] == _QUOTE:
                return at + 1
            if at < size and data[at] == _BACKSLASH:  # an escape that the step cut in two
                at += 2
        yield
    raise NotJson("a string does not end")


def _container(data: Buffer, at: int) -> Steps:
    """The end of an array or object that began before `at`."""
    depth, size = 1, len(data)
    while at < size:
        piece = data[at : at + STEP_BYTES]
        cut = _unfinished_string(piece)
        whole = piece if cut is None else piece[:cut]
        brackets = _STRING.sub(b"", whole).translate(None, _NO_BRACKET)
        closing = brackets
        for _ in range(_ROUNDS_MAX):  # what opens and closes within the piece changes nothing
            shorter = closing.replace(b"[]", b"").replace(b"{}", b"")
            if len(shorter) == len(closing):
                break
            closing = shorter
        closes = closing.count(b"]") + closing.count(b"}")
        if closes >= depth:
            end, depth = _walk(whole, depth)
            if depth == 0:
                return at + end
        else:
            depth += len(closing) - 2 * closes
        if depth > DEPTH_MAX:
            raise NotJson("it is nested too deeply")
        at += len(whole)
        yield
        if cut is not None:
            at = yield from _string(data, at + 1)
    raise NotJson("an array or object does not end")


def _unfinished_string(piece: bytes) -> int | None:
    """Where a string begins that does not end within the piece."""
    end = 0
    for found in _STRING.finditer(piece):
        end = found.end()
    at = piece.find(b'"', end)
    return at if at >= 0 else None


_TOKEN = re.compile(_STRING.pattern + rb"|[\[\]{}]", re.DOTALL)


def _walk(piece: bytes, depth: int) -> tuple[int, int]:
    """(the place behind the bracket that brings `depth` to 0, or the piece's end; the depth there)."""
    for found in _TOKEN.finditer(piece):
        mark = piece[found.start()]
        if mark in _OPEN:
            depth += 1
        elif mark in _CLOSE:
            depth -= 1
            if depth == 0:
                return found.end(), 0
    return len(piece), depth
