"""Questions to a router's control socket."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec

from gpuserved.host.deadline import within

log = logging.getLogger(__name__)

ANSWER_S = 5.0
LINE_MAX_BYTES = 4 * 1024 * 1024
"""A table of thousands of replicas fits."""


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
) -> dict[str, Any]:
    """The answer to one request.

    :raises asyncio.TimeoutError: there is none in time; :raises ConnectionError: the router hung up.
    :raises ValueError: it refused; :raises MsgspecError: its answer is no object.
    """
    writer.write(msgspec.json.encode(request) + b"\n")
    line = await within(reader.readline(), ANSWER_S)
    if not line:
        raise ConnectionError("end of stream")
    answer: dict[str, Any] = msgspec.json.decode(line)
    if answer.get("ok") is not True:
        raise ValueError(f"the router refused {request['op']}: {answer.get('error')}")
    return answer


async def say(path: Path, request: dict[str, Any]) -> None:
    """One request on a connection of its own. A router that does not understand goes by what it has."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        log.warning("the router was not told to %s: %s", request["op"], error)
        return
    try:
        await ask(reader, writer, request)
    except (OSError, asyncio.TimeoutError, ValueError, msgspec.MsgspecError) as error:
        log.warning("the router was not told to %s: %s", request["op"], error)
    finally:
        writer.close()
