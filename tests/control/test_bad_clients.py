from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest

from gpuserved.api.wire import BODY_MAX_BYTES
from gpuserved.control.routes import Limits


def talk(path: Any, data: bytes, timeout_s: float = 60) -> bytes:
    """Send, then everything that comes until the server hangs up."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(timeout_s)
        raw.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            raw.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := raw.recv(65536):
                answer += piece
        return answer


def post(path: str, body: bytes) -> bytes:
    return b"POST /v1/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
        path.encode(), len(body),
    ) + body  # fmt: skip


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x16\x03\x01 not http\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_costs_its_sender_the_connection_and_nobody_else(daemon: Any, garbage: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as polite:
        polite.settimeout(60)
        polite.connect(str(daemon.path))
        polite.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in polite.recv(65536)
        answer = talk(daemon.path, garbage)
        assert b" 200 " not in answer.split(b"\r\n")[0]
        polite.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in polite.recv(65536)
    assert daemon.client.status()


@pytest.mark.parametrize("daemon", [Limits(head_s=0.5)], indirect=True)
@pytest.mark.parametrize("start", [b"", b"GET /v1/stat", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_stalls_is_dropped(daemon: Any, start: bytes) -> None:
    assert talk(daemon.path, start) == b""
    assert daemon.client.status()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", b"not understood"),
        (b"[]", b"Expected `object`"),
        (b'{"replicas": "demo-0"}', b"Expected `array`"),
        (b'{"replicas": ["demo-0"], "forse": true}', b"unknown field `forse`"),
        (b"{}", b"missing required field `replicas`"),
    ],
)
def test_a_request_that_is_not_understood_is_refused_whole(daemon: Any, body: bytes, says: bytes) -> None:
    answer = talk(daemon.path, post("replicas/stop", body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert says in answer
    assert b'"code":"invalid"' in answer
    assert daemon.fleet.calls == []


def test_a_body_has_a_limit(daemon: Any) -> None:
    answer = talk(daemon.path, post("apply", b" " * (BODY_MAX_BYTES + 1)))
    assert b" 400 " in answer.split(b"\r\n")[0] or answer == b""
    assert daemon.fleet.calls == []
    assert daemon.client.status()


@pytest.mark.parametrize("query", ["n=x", "n=-1", "n=99999999", "follow=yes", "previous=1&follow=1"])
def test_a_wrong_query_is_refused(daemon: Any, query: str) -> None:
    answer = talk(
        daemon.path,
        f"GET /v1/replicas/demo-0/logs?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
