"""How many tokens an answer cost, read from what passes: bodies are not altered to ask for it."""

from __future__ import annotations

import re

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
