"""WebSocket frames (RFC 6455 section 5), as much of them as one message of text needs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct

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
