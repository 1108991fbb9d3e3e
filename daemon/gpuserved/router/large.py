"""Large bodies, read and rewritten in short steps: nothing a client sends holds the loop up for long."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gpuserved.core.json_top import Buffer, NotJson, spans
from gpuserved.router.envelope import SESSION_NAMES, Envelope, make_envelope
from gpuserved.router.http import errors
from gpuserved.router.http.body import MEMORY_MAX_BYTES, SLICE_BYTES, Body

LARGE_BYTES = MEMORY_MAX_BYTES
"""Up to here a whole parse takes 5 ms at worst, and the body is in memory."""
_NAME_MAX_BYTES = 4096
_WANTED = ("model", "background", "store", "previous_response_id", *SESSION_NAMES)


async def read_json(body: Body) -> Envelope:
    """As `envelope.read_json`, of a body of any size. What lies below the top level is not looked at.

    :raises HttpError: 400: not JSON, not an object, or no model.
    """
    data = body.view()
    steps = spans(data, frozenset(f'"{name}"'.encode() for name in _WANTED))
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: dict[bytes, tuple[int, int]] = done.value
            break
        except NotJson as error:
            raise errors.bad_request(f"The body is not valid JSON: {error}.", "invalid_json") from None
        await asyncio.sleep(0)
    fields = {name: _value(data, found.get(f'"{name}"'.encode())) for name in _WANTED}
    return make_envelope(fields, span=found.get(b'"model"'))


def _value(data: Buffer, span: tuple[int, int] | None) -> Any:
    """None: not there, or longer than any name."""
    if span is None or span[1] - span[0] > _NAME_MAX_BYTES:
        return None
    try:
        return msgspec.json.decode(data[span[0] : span[1]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def with_model(body: Body, seen: Envelope, name: str) -> Body:
    """The same body for an engine that knows the model by another name."""
    assert seen.span is not None
    start, end = seen.span
    fresh = Body()
    try:
        await _copy(fresh, body.view(), 0, start)
        fresh.append(msgspec.json.encode(name) if seen.quoted else name.encode())
        await _copy(fresh, body.view(), end, body.size)
    except BaseException:
        fresh.close()
        raise
    return fresh


async def _copy(fresh: Body, data: Buffer, start: int, end: int) -> None:
    for at in range(start, end, SLICE_BYTES):
        fresh.append(data[at : min(at + SLICE_BYTES, end)])
        await asyncio.sleep(0)
