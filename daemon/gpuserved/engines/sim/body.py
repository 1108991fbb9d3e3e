"""Reading request bodies: JSON, types and ranges, with vLLM's words where something is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gpuserved.engines.sim.engine_client import Sampling
from gpuserved.engines.sim.errors import (
    ApiError,
    bad_parameter,
    bad_request,
    invalid,
    missing,
    shown,
    unknown_model,
)
from gpuserved.engines.sim.flags import Options
from gpuserved.engines.sim.httpd import Request


def read_json(request: Request) -> dict[str, Any]:
    """The body as an object.

    :raises ApiError: it is not JSON, not an object, or not declared as JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"", "application/json"} or (request.body and not kind):
        text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, text, "Bad Request")
    if not request.body:
        raise invalid({"type": "missing", "loc": "body", "msg": "Field required", "input": "None"})
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        why = getattr(error, "msg", "not decodable")
        raise invalid({
            "type": "json_invalid", "loc": f"body.{at}", "msg": "JSON decode error", "input": "<dict of 0 items>",
            "ctx": {"error": why},
        }) from None  # fmt: skip
    if not isinstance(body, dict):
        raise invalid({
            "type": "model_attributes_type", "loc": "body",
            "msg": "Input should be a valid dictionary or object to extract fields from", "input": shown(body),
        })  # fmt: skip
    return body


def check_model(body: dict[str, Any], options: Options) -> None:
    """Any name but ours is refused; none at all is ours."""
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise invalid({
            "type": "string_type", "loc": "body.model", "msg": "Input should be a valid string", "input": shown(name),
        })  # fmt: skip
    if name and name != options.served_model_name:
        raise unknown_model(name, options.served_model_name)


def integer(body: dict[str, Any], name: str) -> int | None:
    """An optional whole number."""
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        kind, why = "int_parsing", "Input should be a valid integer, unable to parse string as an integer"
    else:
        kind, why = "int_type", "Input should be a valid integer"
    raise invalid({"type": kind, "loc": f"body.{name}", "msg": why, "input": shown(value)})


def number(body: dict[str, Any], name: str, default: float) -> float:
    """An optional number."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise invalid({
        "type": "float_type", "loc": f"body.{name}", "msg": "Input should be a valid number", "input": shown(value),
    })  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What a generating request asks for, checked."""

    n: int
    sampling: Sampling
    stop: tuple[str, ...]
    include_stop: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool


def read_sampling(
    body: dict[str, Any],
    prompt_tokens: int,
    options: Options,
    *,
    limit_names: tuple[str, ...],
    default_max: int | None,
) -> Wanted:
    """The sampling part of a body.

    :param limit_names: the fields that may hold the token limit, the most important first.
    :param default_max: the limit without one; None: whatever fits.
    :raises ApiError: a value out of range, or a prompt that does not fit.
    """
    stream = bool(body.get("stream"))
    stream_options = body.get("stream_options") or {}
    if stream_options and not stream:
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_options")
    temperature = number(body, "temperature", 1.0)
    if temperature < 0:
        text = f"temperature must be non-negative, got {temperature}."
        raise bad_parameter(text, "temperature", temperature)
    top_p = number(body, "top_p", 1.0)
    if not 0 < top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    n = 1 if (asked := integer(body, "n")) is None else asked
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.")
    seed = integer(body, "seed") or 0
    return Wanted(
        n=n,
        sampling=Sampling(
            max_tokens=_limit(body, prompt_tokens, options, limit_names, default_max),
            min_tokens=integer(body, "min_tokens") or 0,
            ignore_eos=bool(body.get("ignore_eos")),
            seed=0 if temperature == 0 else seed,
            salt=str(body.get("cache_salt") or ""),
            stop_token_ids=tuple(int(token) for token in body.get("stop_token_ids") or ()),
        ),
        stop=_stops(body),
        include_stop=bool(body.get("include_stop_str_in_output")),
        stream=stream,
        include_usage=bool(stream_options.get("include_usage")),
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
    )


def _limit(
    body: dict[str, Any], prompt_tokens: int, options: Options, names: tuple[str, ...], default: int | None
) -> int:
    longest = options.max_model_len
    name, asked = names[-1], None
    for candidate in names:
        if (asked := integer(body, candidate)) is not None:
            name = candidate
            break
    if asked is not None and asked < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {asked}.", "max_tokens", asked)
    if asked is not None and asked > longest:
        text = f"{name}={asked} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
        raise bad_parameter(text, name, asked)
    if prompt_tokens >= longest:
        text = (
            f"This model's maximum context length is {longest} tokens. However, your prompt contains at least "
            f"{longest + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            "length of the input prompt."
        )
        raise bad_parameter(text, "input_tokens", longest + 1)
    return min(asked or default or longest, longest - prompt_tokens)


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise invalid({
            "type": "string_type", "loc": "body.stop", "msg": "Input should be a valid string", "input": shown(stop),
        })  # fmt: skip
    if "" in found:
        raise bad_request("stop cannot contain an empty string.")
    return tuple(found)


def read_messages(body: dict[str, Any], name: str = "messages") -> list[tuple[str, str]]:
    """The conversation as (role, text). Parts that are not text become a short mark of their content."""
    messages = body.get(name)
    if messages is None:
        raise invalid(missing(name, body))
    if not isinstance(messages, list):
        raise invalid({
            "type": "list_type", "loc": f"body.{name}", "msg": "Input should be a valid list", "input": shown(messages),
        })  # fmt: skip
    if not messages:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    found = []
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid({
                "type": "missing", "loc": f"body.{name}.{at}.role", "msg": "Field required", "input": shown(message),
            })  # fmt: skip
        found.append((message["role"], _text_of(message.get("content"))))
    tools = body.get("tools")
    return [("system", json.dumps(tools, sort_keys=True)), *found] if tools else found


def _text_of(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        return "".join(
            part["text"] if isinstance(part.get("text"), str) else json.dumps(part) for part in parts
        )
    return json.dumps(content)
