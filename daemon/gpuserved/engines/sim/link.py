"""The socket between API server and EngineCore: one JSON object a line, both ways."""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]


def pack(message: Message) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]


def receive(peer: socket.socket, lines: Lines) -> list[Message] | None:
    """Block until something arrives; None once the other side is gone."""
    while True:
        try:
            data = peer.recv(1 << 16)
        except (ConnectionError, OSError):
            return None
        if not data:
            return None
        messages = lines.feed(data)
        if messages:
            return messages
