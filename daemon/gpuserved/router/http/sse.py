"""Server-sent events, as far as the router reads them: is the first one an error, and where does an event end."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

import msgspec

from gpuserved.core.routes import Sse

HOLD_MAX_BYTES = 64 * 1024
"""The longest unfinished event that is held back."""
_ERROR = re.compile(rb"(?:event:[^\r\n]*\r?\n)?data: ?\{\s*\"(?:error\"|type\": ?\"error\")")
_CODE = re.compile(rb"\"code\": ?\"?([0-9]{3})\b")
_LONGEST_OPENING = 256


class First(Enum):
    """What a stream begins with."""

    UNCLEAR = "unclear"
    DATA = "data"
    ERROR = "error"


def _could_be_error(held: bytes) -> bool:
    """Could more bytes still make this an error event?"""
    line = held
    if held.startswith(b"event:"):
        _, newline, line = held.partition(b"\n")
        if not newline:
            return True
    elif b"event:".startswith(held):
        return True
    text = line.replace(b" ", b"")
    return any(o.startswith(text) for o in (b'data:{"error"', b'data:{"type":"error"'))


def first_event(held: bytes) -> First:
    """Judge the beginning of a stream. An error is judged once its event is whole, so that its code can be read."""
    if _ERROR.match(held):
        whole = b"\n\n" in held or b"\r\n\r\n" in held
        return First.ERROR if whole or len(held) > HOLD_MAX_BYTES else First.UNCLEAR
    if len(held) < _LONGEST_OPENING and _could_be_error(held):
        return First.UNCLEAR
    return First.DATA


def is_server_error(event: bytes) -> bool:
    """Does an error event blame the server? One without a code does."""
    found = _CODE.search(event)
    return found is None or int(found[1]) >= 500


class EventGate:
    """Lets whole events pass and holds back an unfinished one, so that a replica that dies in the middle of an event
    leaves no half line before the error event. Engines write whole events: nothing waits in practice.
    """

    __slots__ = ("_rest", "mid_event")

    def __init__(self) -> None:
        self._rest = b""
        self.mid_event = False
        """An event too long to hold was let go unfinished."""

    @property
    def between_events(self) -> bool:
        """Nothing is held, and what was let go ended with an event."""
        return not self._rest and not self.mid_event

    def feed(self, data: bytes) -> bytes:
        """What may be sent now."""
        if self._rest:
            data = self._rest + data
        if data.endswith((b"\n\n", b"\r\n\r\n")):
            self._rest = b""
            self.mid_event = False
            return data
        line_feeds, crlfs = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        end = max(line_feeds + 2 if line_feeds >= 0 else 0, crlfs + 4 if crlfs >= 0 else 0)
        self._rest = data[end:]
        if len(self._rest) > HOLD_MAX_BYTES:
            self._rest = b""
            self.mid_event = True
            return data
        if end:
            self.mid_event = False
        return data[:end]

    def rest(self) -> bytes:
        """What is held when the stream ends by itself."""
        rest, self._rest = self._rest, b""
        return rest


class Cut(NamedTuple):
    """Why a stream ends before its time."""

    kind: str
    code: int
    message: str


REPLICA_DIED = Cut(
    "replica_died", 502, "The replica that produced this answer died; what came so far is incomplete."
)
ROUTER_ENDED = Cut(
    "router_ended", 503, "The router that carried this answer had to end; what came so far is incomplete."
)


def cut_notice(why: Cut, style: Sse, *, mid_event: bool) -> bytes:
    """The last events of a stream that is cut."""
    error = {"message": why.message, "type": why.kind, "code": why.code}
    start = b"\n\n" if mid_event else b""
    if style is Sse.TYPED:
        data = {"type": "error", "error": error, "code": why.kind, "message": why.message}
        return start + b"event: error\ndata: " + msgspec.json.encode(data) + b"\n\n"
    return start + b"data: " + msgspec.json.encode({"error": error}) + b"\n\ndata: [DONE]\n\n"
