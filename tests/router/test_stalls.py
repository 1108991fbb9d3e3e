"""No body holds the router's loop for longer than 50 ms: CPU time of each step, so that a busy machine does not count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

import pytest
from tests.policy.cost import worst

from gpuserved.core.json_top import NotJson, spans
from gpuserved.core.policy.prefix_key import prefix_key
from gpuserved.router.http.body import MEMORY_MAX_BYTES
from gpuserved.router.http.errors import HttpError
from gpuserved.router.params import read_json

STALL_MAX_S = 0.05
WANTED = frozenset([b'"model"', b'"user"'])


def _filled(head: bytes, piece: bytes, tail: bytes, size: int) -> bytes:
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


SHAPES = {
    "one long text": (b'{"model":"m","x":"', b"a", b'"}'),
    "escapes": (b'{"model":"m","x":"', b"\\u00e9", b'"}'),
    "backslashes": (b'{"model":"m","x":"', b"\\\\", b'"}'),
    "small numbers": (b'{"model":"m","x":[', b"1,", b"1]}"),
    "empty objects": (b'{"model":"m","x":[', b"{},", b"{}]}"),
    "short texts": (b'{"model":"m","x":[', b'"a",', b'"a"]}'),
    "many keys below": (b'{"model":"m","x":{', b'"k":1,', b'"k":1}}'),
    "texts full of brackets": (b'{"model":"m","x":[', b'"]}[{",', b'"]"]}'),
    "blanks": (b'{"model":"m","x":[', b" ", b"1]}"),
    "only opened": (b'{"model":"m","x":', b"[", b""),
    "opened and closed": (b'{"model":"m","x":[', b"[[[[]]]],", b"[]]}"),
    "never ends": (b'{"model":"m","x":"', b"a", b""),
}


def _longest(steps: Generator[None, None, object]) -> float:
    longest = 0.0
    with contextlib.suppress(StopIteration, NotJson):
        while True:
            began = time.thread_time()
            try:
                next(steps)
            finally:
                longest = max(longest, time.thread_time() - began)
    return longest


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_body_is_read_in_short_steps(shape: str) -> None:
    head, piece, tail = SHAPES[shape]
    body = _filled(head, piece, tail, 8 * MEMORY_MAX_BYTES)
    assert min(_longest(spans(body, WANTED)) for _ in range(2)) < STALL_MAX_S


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_in_memory_is_parsed_at_once(shape: str) -> None:
    head, piece, tail = SHAPES[shape]
    body = _filled(head, piece, tail, MEMORY_MAX_BYTES)

    def parse() -> float:
        began = time.thread_time()
        with contextlib.suppress(HttpError):
            read_json(body)
        return time.thread_time() - began

    assert min(parse() for _ in range(3)) < STALL_MAX_S


@pytest.mark.parametrize("shape", worst())
def test_the_key_of_a_prompt_takes_no_longer(shape: str) -> None:
    body = worst()[shape]

    def read() -> float:
        began = time.thread_time()
        prefix_key(body)
        return time.thread_time() - began

    assert min(read() for _ in range(3)) < STALL_MAX_S
