"""A row of the control API's table: method, path, what answers, and for how long it may take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, Union

import msgspec
from aiohttp import web

from gpuserved.api.errors import Invalid
from gpuserved.api.wire import CHANGE_LIMIT_S, READ_LIMIT_S

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How long the steps of a call may take."""

    head_s: float = 5.0
    """A client that has sent no whole request head by then is dropped."""
    body_s: float = 10.0
    read_s: float = READ_LIMIT_S
    change_s: float = CHANGE_LIMIT_S


@dataclass(frozen=True)
class Stream:
    """An answer without an end that is known: its head is due at the call's deadline, the rest comes as it happens."""

    content_type: str
    blocks: Callable[[], AsyncGenerator[bytes, None]]
    """Called once the head is out; not at all where only the head was asked for (HEAD)."""


Answer = Union[msgspec.Struct, Stream, None]  # noqa: UP007 - evaluated, and Python 3.10 cannot join these classes
"""A struct becomes JSON; None is an answer without a body."""


@dataclass(frozen=True)
class Route:
    """One call."""

    method: str
    """GET has a HEAD beside it: the same without a body."""
    path: str
    """Below the prefix; `{name}` is read with `request.match_info`."""
    answer: Callable[[web.Request], Awaitable[Answer]]
    limit_s: float
    """Until the answer, or a stream's head. A read is given up then; a change goes on."""
    changes: bool = False
    """Only those who may operate; it is finished whether or not its client waits."""
    status: int = 200


async def body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON.

    :raises Invalid: not of this kind; unknown fields included.
    """
    raw = await request.read()
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise Invalid(
            f"the request is not understood: {error}", "client and daemon may be of different releases"
        ) from None


def number(request: web.Request, name: str) -> float | None:
    """A query parameter that is a number, not negative; None: it is not there."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Invalid(f"{name}={text[:20]!r}: expected a number, not negative")
    return value


def line_count(request: web.Request, most: int, default: int = 100) -> int:
    """The query parameter `n`: how many lines."""
    text = request.query.get("n", str(default))
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Invalid(f"n={text[:20]!r}: expected a number of lines from 0 to {most}")
    return int(text)


def flag(request: web.Request, name: str, *, default: bool) -> bool:
    """A query parameter that is 0 or 1."""
    text = request.query.get(name)
    if text is None:
        return default
    if text not in {"0", "1"}:
        raise Invalid(f"{name}={text!r}: expected 0 or 1")
    return text == "1"
