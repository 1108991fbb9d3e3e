"""The few fields of a request the router looks at, and the one it may rewrite: `model`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from gpuserved.core.json_top import Buffer, NotJson, spans
from gpuserved.router.http import errors
from gpuserved.router.http.body import MEMORY_MAX_BYTES, SLICE_BYTES, Body

MULTIPART_LOOK_BYTES = 64 * 1024
_BOUNDARY = re.compile(
    rb"(?i)^multipart/form-data\s*;.*?boundary=(?:\"([^\"\r\n]{1,200})\"|([^\s;\"]{1,200}))"
)
_NAME = re.compile(
    rb"(?i)^content-disposition:[^\r\n]*;\s*name=(?:\"model\"|model(?=[;\r\n]|$))", re.MULTILINE
)

LARGE_BYTES = MEMORY_MAX_BYTES
"""Up to here a whole parse takes 5 ms at worst, and the body is in memory."""
_NAME_MAX_BYTES = 4096
SESSION_NAMES = ("session_id", "prompt_cache_key", "user")
"""Fields of a body that name a session, the narrower one first."""
_WANTED = ("model", "background", "store", "previous_response_id", *SESSION_NAMES)


class _Fields(msgspec.Struct):
    """Typed `Any`: a wrong type in a field that is not ours is the engine's to refuse."""

    model: Any = None
    background: Any = None
    store: Any = None
    previous_response_id: Any = None


_DECODER = msgspec.json.Decoder(_Fields)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Params(msgspec.Struct, frozen=True, gc=False):
    """What the router knows of a request's content."""

    model: str
    stored: bool = False
    """The client asked the engine to keep a result: such a request is never sent twice."""
    previous_response_id: str | None = None
    span: tuple[int, int] | None = None
    """Where the model's name is, in a form or a large body."""
    quoted: bool = False
    """`span` is a JSON string, quotes and all."""
    session: str | None = None
    """What names the session, in a large body."""


def _named(model: Any) -> str:
    if not isinstance(model, str) or not model:
        raise errors.bad_request("`model` must be a string that names a model.", "model_required")
    return model


def read_json(body: Buffer) -> Params:
    """The envelope of a JSON body.

    :raises HttpError: 400: not JSON, not an object, or no model.
    """
    try:
        fields = _DECODER.decode(body)
    except msgspec.ValidationError:
        raise errors.bad_request("The body must be a JSON object.", "invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.bad_request(f"The body is not valid JSON: {error}.", "invalid_json") from None
    except RecursionError:
        raise errors.bad_request("The body's JSON is nested too deeply.", "invalid_json") from None
    return Params(
        model=_named(fields.model),
        stored=fields.store is True or fields.background is True,
        previous_response_id=_text(fields.previous_response_id),
    )


def _params_of(fields: Mapping[str, Any], span: tuple[int, int] | None) -> Params:
    """The envelope of a large JSON body, from its fields; a wrong type is the engine's to refuse.

    :raises HttpError: 400: no model.
    """
    names = [name for key in SESSION_NAMES if (name := _text(fields[key]))]
    return Params(
        model=_named(fields["model"]), stored=fields["store"] is True or fields["background"] is True,
        previous_response_id=_text(fields["previous_response_id"]), span=span, quoted=True,
        session=names[0] if names else None,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def read_multipart(body: Buffer, content_type: bytes) -> Params:
    """The envelope of a form; `model` must lie in its first 64 KiB.

    :raises HttpError: 400.
    """
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise errors.bad_request("A multipart/form-data body with a boundary is expected.", "invalid_form")
    delimiter = b"\r\n--" + (found[1] or found[2])
    look = b"\r\n" + bytes(body[:MULTIPART_LOOK_BYTES])
    at = look.find(delimiter)
    while at >= 0:
        start = at + len(delimiter) + 2
        head_end = look.find(b"\r\n\r\n", start)
        at = look.find(delimiter, start)
        if head_end < 0 or (0 <= at < head_end):
            continue
        if at > 0 and _NAME.search(look[start:head_end]):
            value = look[head_end + 4 : at]
            text = value.decode("utf-8", "replace").strip()
            return Params(model=_named(text), span=(head_end + 2, at - 2))
    raise errors.bad_request(
        "`model` must be a field in the first 64 KiB of the form; put it before the file.", "model_required"
    )


def read_query(query: str) -> Params:
    """The envelope of an upgrade request.

    :raises HttpError: 400.
    """
    values = [value for name, value in parse_qsl(query, max_num_fields=100) if name == "model"]
    return Params(model=_named(values[0] if values else None))


def with_model(body: Buffer, params: Params, model: str) -> bytes:
    """The same body for an engine that knows the model by another name; everything else stays as it is."""
    if params.span is not None:
        start, end = params.span
        return b"".join((body[:start], model.encode(), body[end:]))
    fields = _OBJECT.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def query_with_model(query: str, model: str) -> str:
    """The same query with another model."""
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    return urlencode([(name, model if name == "model" else value) for name, value in pairs])


async def read_large_json(body: Body) -> Params:
    """As `read_json`, of a body of any size. What lies below the top level is not looked at.

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
    return _params_of(fields, span=found.get(b'"model"'))


def _value(data: Buffer, span: tuple[int, int] | None) -> Any:
    """None: not there, or longer than any name."""
    if span is None or span[1] - span[0] > _NAME_MAX_BYTES:
        return None
    try:
        return msgspec.json.decode(data[span[0] : span[1]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def large_with_model(body: Body, seen: Params, name: str) -> Body:
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
