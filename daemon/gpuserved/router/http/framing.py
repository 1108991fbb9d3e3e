"""Where a body ends: by length, by chunks, or with the connection. The same decoders read clients and replicas."""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n")
"""RFC 9110 section 5.1: a token, and its value."""
_LINE_MAX_BYTES = 1024
_TRAILER_MAX_BYTES = 8 * 1024
LINES_MAX = 1024
"""Lines a client's chunks may take of one turn of the loop, about 3 ms: a body of one-byte chunks holds up nobody."""
_SIZE_LINE, _DATA, _DATA_END, _TRAILER = range(4)


WHOLE_MAX_BYTES = 4096
"""A chunk of one server-sent event is smaller."""


def _opening(total: int) -> bytes:
    for digits in range(1, 4):
        size = total - digits - 4
        if size > 0 and len(b"%x" % size) == digits:
            return b"%x\r\n" % size
    return b"\0"


OPENINGS = [_opening(total) for total in range(WHOLE_MAX_BYTES)]
"""What bytes of that total length begin with if they are one whole chunk in its usual writing, CRLF at both ends counted;
where no chunk has that length, something that no chunk begins with."""


_PLAIN_SIZE = re.compile(rb"([0-9a-f]{1,6})\r\n")


def whole_chunks(data: bytes) -> bool:
    """Are these bytes, which begin a chunk, whole chunks in their usual writing, and none of them the last?"""
    at, size = 0, len(data)
    while at < size:
        found = _PLAIN_SIZE.match(data, at)
        if found is None:
            return False
        payload = int(found[1], 16)
        at = found.end() + payload + 2
        if not payload or data[at - 2 : at] != b"\r\n":
            return False
    return at == size


class FramingError(Exception):
    """The chunks are malformed."""


class LengthDecoder:
    """A body of known length."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """(payload, bytes used of `data`)."""
        payload = data if len(data) <= self._left else data[: self._left]
        self._left -= len(payload)
        self.done = self._left == 0
        return payload, len(payload)


class EofDecoder:
    """A body that lasts until the connection ends."""

    __slots__ = ()
    done = False

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """(payload, bytes used of `data`)."""
        return data, len(data)


class ChunkedDecoder:
    """Chunked coding, strict: CRLF everywhere, hexadecimal sizes only, extensions and trailers dropped."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "done")

    def __init__(self) -> None:
        self._state = _SIZE_LINE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self.done = False

    @property
    def between_chunks(self) -> bool:
        """The next byte begins a chunk."""
        return self._state == _SIZE_LINE and not self._line and not self.done

    def feed(self, data: bytes, lines_max: int | None = None) -> tuple[bytes, int]:
        """(payload, bytes used of `data`).

        :param lines_max: stop after so many lines of framing; the rest is for the next call.
        :raises FramingError: not chunked coding as we trust it.
        """
        out: list[bytes] = []
        at = 0
        size = len(data)
        lines_left = size if lines_max is None else lines_max
        while at < size and not self.done and lines_left > 0:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = _DATA_END
                continue
            lines_left -= 1
            end = data.find(b"\n", at)
            stop = size if end < 0 else end + 1
            line = self._line + data[at:stop]
            at = stop
            if len(line) > _LINE_MAX_BYTES:
                raise FramingError("a chunk's line is too long")
            if end < 0:
                self._check_partial(line)
                self._line = line
                break
            self._line = b""
            self._take_line(line)
        return out[0] if len(out) == 1 else b"".join(out), at

    def _check_partial(self, line: bytes) -> None:
        if self._state == _DATA_END and line != b"\r":
            raise FramingError("a chunk is longer than it says")

    def _take_line(self, line: bytes) -> None:
        if self._state == _SIZE_LINE:
            found = _SIZE.fullmatch(line)
            if found is None:
                raise FramingError("a chunk's size is malformed")
            self._left = int(found[1], 16)
            self._state = _DATA if self._left else _TRAILER
        elif self._state == _DATA_END:
            if line != b"\r\n":
                raise FramingError("a chunk is longer than it says")
            self._state = _SIZE_LINE
        else:
            self._trailer_bytes += len(line)
            self.done = line == b"\r\n"
            good = self.done or _FIELD_LINE.fullmatch(line)
            if not good or self._trailer_bytes > _TRAILER_MAX_BYTES:
                raise FramingError("the trailer is malformed")


Decoder = LengthDecoder | ChunkedDecoder | EofDecoder


def decoder_for(content_length: int | None, *, chunked: bool) -> Decoder:
    """The decoder of a response's body."""
    if chunked:
        return ChunkedDecoder()
    return EofDecoder() if content_length is None else LengthDecoder(content_length)
