"""Speech: forms with a file, and the WebSocket (RFC 6455 section 5) of live audio. What is heard follows from the bytes."""

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

TEXT, CLOSE = 1, 8
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MESSAGE_MAX_BYTES = 16 * 1024 * 1024


def accept_key(key: str) -> bytes:
    """The answer to a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest())  # noqa: S324 - RFC 6455 says so


def frame(opcode: int, data: bytes, mask: bytes = b"") -> bytes:
    """One whole frame; a client's has a mask of four bytes."""
    bit = 0x80 if mask else 0
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, size)
    return head + mask + (_masked(data, mask) if mask else data)


def _masked(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next message; None: the other side closes.

    :raises IncompleteReadError: the connection ended; :raises ValueError: too long.
    """
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await reader.readexactly(8))
    if size > MESSAGE_MAX_BYTES:
        raise ValueError("message too long")
    mask = await reader.readexactly(4) if second & 0x80 else b""
    data = await reader.readexactly(size)
    if first & 0x0F == CLOSE:
        return None
    return _masked(data, mask) if mask else data


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
