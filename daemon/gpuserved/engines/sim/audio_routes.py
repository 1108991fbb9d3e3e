"""Speech: forms with a file, and the WebSocket of live audio. What is heard follows from the bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import struct
import time
from typing import Any

from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.errors import invalid, missing
from gpuserved.engines.sim.httpd import Reply, Request
from gpuserved.engines.sim.websocket import TEXT, accept_key, frame, read_frame

_BYTES_PER_S = 32_000
"""PCM, 16 bits, 16 kHz."""


def _fields(request: Request) -> dict[str, bytes]:
    """The fields of a form by name.

    :raises ApiError: it is no form.
    """
    kind = request.headers.get("content-type", "")
    boundary = re.search(r'boundary="?([^";]+)', kind)
    if not kind.lower().startswith("multipart/form-data") or boundary is None:
        raise invalid({"type": "missing", "loc": "body.file", "msg": "Field required", "input": "None"})
    found: dict[str, bytes] = {}
    for part in (b"\r\n" + request.body).split(b"\r\n--" + boundary[1].encode())[1:]:
        head, blank, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        if blank and name is not None:
            found[name[1].decode("latin-1")] = data
    return found


async def transcribe(server: Server, request: Request, reply: Reply) -> None:
    """`/v1/audio/transcriptions` and `/v1/audio/translations`."""
    fields = _fields(request)
    server.check_model({"model": fields.get("model", b"").decode("utf-8", "replace")})
    if "file" not in fields:
        raise invalid(missing("file", {}))
    audio = fields["file"]
    text = f"heard {hashlib.sha256(audio).hexdigest()[:16]} in {len(audio)} bytes"
    if fields.get("response_format") == b"text":
        await reply.json(200, text)
        return
    await reply.json(
        200, {"text": text, "usage": {"type": "duration", "seconds": -(-len(audio) // _BYTES_PER_S)}}
    )


async def realtime(server: Server, request: Request, reply: Reply) -> None:
    """`/v1/realtime`: audio in, words out, until either side closes."""
    key = request.headers.get("sec-websocket-key")
    if request.headers.get("upgrade", "").lower() != "websocket" or not key:
        await reply.json(404, {"detail": "Not Found"})
        return
    reader = reply.tunnel()
    await reply.raw(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: "
        + accept_key(key)
        + b"\r\nserver: uvicorn\r\n\r\n"
    )

    async def say(event: dict[str, Any]) -> None:
        await reply.raw(frame(TEXT, json.dumps(event).encode()))

    await say({"type": "session.created", "id": "sess-" + secrets.token_hex(8), "created": int(time.time())})
    heard = bytearray()
    try:
        while (message := await read_frame(reader)) is not None:
            await _hear(json.loads(message), heard, server, say)
    except (asyncio.IncompleteReadError, ValueError, struct.error):
        return


async def _hear(event: dict[str, Any], heard: bytearray, server: Server, say: Any) -> None:
    kind = event.get("type")
    if kind == "input_audio_buffer.append":
        heard += base64.b64decode(event["audio"])
    elif kind == "input_audio_buffer.commit":
        text = f"heard {len(heard)} bytes"
        for word in text.split():
            await say({"type": "transcription.delta", "delta": word + " "})
        await say({"type": "transcription.done", "text": text, "usage": None})
        heard.clear()
    elif kind == "session.update":
        server.check_model(event)
    else:
        await say({"type": "error", "error": f"Unknown event type: {kind}", "code": "unknown_event"})
