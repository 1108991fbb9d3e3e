"""The answer on its way to the client: head rewritten, body framed anew, back-pressure by the two transports."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpuserved.core.routes import Sse
from gpuserved.router.client_connection import ClientConnection
from gpuserved.router.http.head import ResponseHead, client_response
from gpuserved.router.http.sse import Cut, EventGate, cut_notice

_RESPONSE_ID = re.compile(rb"\"id\": ?\"(resp_[A-Za-z0-9_-]{1,200})\"")
_RESPONSE_ID_LOOK_BYTES = 4096
_TAIL_BYTES = 4096
"""`usage` stands in the last event of a stream, and near the end of a plain answer."""
_FIGURE = re.compile(
    rb'"(prompt_tokens|completion_tokens|input_tokens|output_tokens|total_tokens)"\s*:\s*([0-9]{1,12})'
)
_BYTES_PER_TOKEN = 4
"""Of a request's body, where the answer does not say (rule of thumb for English text)."""
_EVENTS_WITHOUT_TOKENS = 2
"""The role at the beginning, and [DONE]."""


class UsageTap:
    """Keeps the end of an answer and counts the events of a stream."""

    __slots__ = ("_events", "_sse", "_tail")

    def __init__(self, *, sse: bool) -> None:
        self._sse = sse
        self._tail = b""
        self._events = 0

    def feed(self, data: bytes) -> None:
        """A piece of the body passes, its chunk's framing included or not."""
        if self._sse:
            self._events += data.count(b"\n\n")
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]

    def tokens(self, request_bytes: int) -> tuple[int, int]:
        """(prompt tokens, completion tokens): as the engine reports them, which a client of a stream asks for with
        `stream_options.include_usage`; else estimated from the request's size and the stream's events. A plain answer
        that reports none costs none.
        """
        # In a text that a model wrote the quotes are escaped, so that none can pretend to be this.
        at = self._tail.rfind(b'"usage"')
        figures = {name: int(number) for name, number in _FIGURE.findall(self._tail, at)} if at >= 0 else {}
        if figures:
            prompt = figures.get(b"prompt_tokens", figures.get(b"input_tokens"))
            completion = figures.get(b"completion_tokens", figures.get(b"output_tokens"))
            total = figures.get(b"total_tokens")
            if prompt is None:
                prompt = (
                    max(0, total - (completion or 0))
                    if total is not None
                    else request_bytes // _BYTES_PER_TOKEN
                )
            if completion is None:
                completion = max(0, total - prompt) if total is not None else 0
            return prompt, completion
        if not self._sse:
            return 0, 0
        return request_bytes // _BYTES_PER_TOKEN, max(0, self._events - _EVENTS_WITHOUT_TOKENS)


class IdTap:
    """Reads the id of a response from the first bytes of its body."""

    __slots__ = ("_learn", "_seen")

    def __init__(self, learn: Callable[[str], None]) -> None:
        self._seen = b""
        self._learn: Callable[[str], None] | None = learn

    @property
    def done(self) -> bool:
        """Needs to see no more."""
        return self._learn is None

    def feed(self, data: bytes) -> None:
        """A piece of the body passes."""
        if self._learn is None:
            return
        self._seen += data[:_RESPONSE_ID_LOOK_BYTES]
        found = _RESPONSE_ID.search(self._seen)
        if found is not None:
            self._learn(found[1].decode())
        if found is not None or len(self._seen) >= _RESPONSE_ID_LOOK_BYTES:
            self._learn = None
            self._seen = b""


class Response:
    """One committed answer."""

    __slots__ = ("_chunked", "_client", "_close", "_gate", "_head", "_style", "_tap", "_usage", "sent_bytes")

    def __init__(
        self,
        client: ClientConnection,
        head: ResponseHead,
        *,
        http10: bool,
        close: bool,
        style: Sse,
        tap: IdTap | None,
        usage: UsageTap | None = None,
    ) -> None:
        self._client = client
        self._head = head
        self._chunked = head.content_length is None and not http10
        self._close = close or (head.content_length is None and http10)
        self._gate = EventGate() if head.sse and head.content_length is None else None
        self._style = style
        self._tap = tap
        self._usage = usage
        self.sent_bytes = 0
        """Of the body, framing included, but for chunks that passed as they were."""

    def start(self, held: bytes, *, request_id: bytes, replica: bytes) -> None:
        """Write the head and what came of the body so far."""
        body = self._framed(held)
        self.sent_bytes = len(body)
        self._client.write(self._own_head(request_id, replica) + body)

    def head_alone(self, *, request_id: bytes, replica: bytes) -> None:
        """Write the head, and no body: all of an answer to HEAD."""
        self._client.write(self._own_head(request_id, replica))
        self._client.finished(keep_alive=not self._close)

    def _own_head(self, request_id: bytes, replica: bytes) -> bytes:
        framing = b""
        if self._head.status not in {204, 304}:
            if self._head.content_length is not None:
                framing = b"content-length: %d\r\n" % self._head.content_length
            elif self._chunked:
                framing = b"transfer-encoding: chunked\r\n"
        return client_response(
            self._head, framing=framing, request_id=request_id, replica=replica, close=self._close
        )

    def _framed(self, data: bytes) -> bytes:
        if data and self._tap is not None:
            self._tap.feed(data)
        if data and self._usage is not None:
            self._usage.feed(data)
        if self._gate is not None:
            data = self._gate.feed(data)
        if not data or not self._chunked:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    @property
    def between_events(self) -> bool:
        """Whole chunks may pass as they are: chunks are what the client gets, and nothing is held or looked for."""
        tap, gate = self._tap, self._gate
        return self._chunked and (tap is None or tap.done) and (gate is None or gate.between_events)

    def chunk_ending(self) -> bytes:
        """How a chunk ends that cuts nothing in two: for a stream, with the end of an event."""
        return b"\r\n" if self._gate is None else b"\n\n\r\n"

    def chunk_writer(self) -> Callable[[bytes], object]:
        """Takes a whole chunk, framing and all."""
        write, usage = self._client.writer(), self._usage
        if usage is None:
            return write

        def counted(chunk: bytes) -> None:
            usage.feed(chunk)
            write(chunk)

        return counted

    def body(self, data: bytes) -> None:
        """A piece of the body."""
        framed = self._framed(data)
        if framed:
            self.sent_bytes += len(framed)
            self._client.write(framed)

    def finish(self) -> None:
        """The body is whole."""
        rest = self._gate.rest() if self._gate is not None else b""
        self._end(rest)

    def cut(self, why: Cut) -> None:
        """Nothing more comes, in the middle: a stream ends with an error event, anything else is aborted, so that
        nobody takes half an answer for a whole one.
        """
        if self._gate is None:
            self._client.abort()
        else:
            self._end(cut_notice(why, self._style, mid_event=self._gate.mid_event))

    def _end(self, last: bytes) -> None:
        if self._chunked:
            last = (b"%x\r\n%b\r\n" % (len(last), last) if last else b"") + b"0\r\n\r\n"
        if last:
            self.sent_bytes += len(last)
            self._client.write(last)
        self._client.finished(keep_alive=not self._close)
