"""chat: one completion through the router, printed as it is written."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gpuserved.api.errors import (
    Conflict,
    Denied,
    GpuserveError,
    Internal,
    NotFound,
    Refused,
    TimedOut,
    Unavailable,
)
from gpuserved.api.types import Status
from gpuserved.cli.parser import VerbParser, count
from gpuserved.cli.session import client_of, print_json
from gpuserved.config.daemon import is_loopback
from gpuserved.host.logtail import clean

_CONNECT_TIMEOUT_S = 10.0
_SILENCE_MAX_S = 900.0
"""A cold start is waited for by the router, and a reasoning model may think for minutes."""
_ERROR_MAX_BYTES = 64 * 1024


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        'chat "My order is late."',
        'chat --model llama-8b --max-tokens 50 "Hello"',
        "cat letter.txt | gpuserve chat -",
    )
    parser.add_argument("text", nargs="+", metavar="TEXT", help="the message; - reads it from standard input")
    parser.add_argument(
        "--model", "-m", default="default", metavar="M", help="served name or profile (the first one)"
    )
    parser.add_argument("--max-tokens", type=count, default=200, metavar="N", help="longest answer (200)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0.7")


def run(options: argparse.Namespace) -> int:
    """`gpuserve chat`."""
    text = " ".join(options.text)
    if text == "-":
        text = sys.stdin.read()
    status = client_of(options).status()
    if status.endpoint is None:
        raise Unavailable("the daemon has no URL yet", "gpuserve status says why")
    request = {
        "model": choose_model(status, options.model),
        "messages": [{"role": "user", "content": text}],
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "stream": not options.json,
    }
    connection, response = _post(status.endpoint, request)
    try:
        if options.json:
            print_json(json.loads(response.read()))
            return 0
        for piece in pieces(response):
            print(piece, end="", flush=True)
        print()
    except TimeoutError:
        raise TimedOut(
            f"nothing came for {_SILENCE_MAX_S:g} s", "gpuserve status shows the replicas"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise Internal(f"the answer broke off: {error or type(error).__name__}", "try again") from None
    finally:
        connection.close()
    return 0


def choose_model(status: Status, wanted: str) -> str:
    """A served name for what was typed: itself, its profile's, or for `default` the first.

    :raises NotFound: no model of that name.
    """
    models = list(dict.fromkeys(replica.model for replica in status.replicas))
    if wanted in models:
        return wanted
    for replica in status.replicas:
        if wanted in {"default", replica.profile}:
            return replica.model
    raise NotFound(
        f"no model {wanted!r} is served" if models else "no model is served",
        f"served: {', '.join(models)}" if models else "gpuserve up PROFILE",
    )


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    """Over TLS the name in the certificate is another than the loopback address that the daemon on this machine gives: there
    it proves nothing.
    """
    host, port = url.hostname or "", url.port or 80
    if url.scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=_CONNECT_TIMEOUT_S)
    context = ssl.create_default_context()
    if is_loopback(host):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_CONNECT_TIMEOUT_S, context=context)


def _post(
    endpoint: str, request: dict[str, Any]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    url = urlsplit(endpoint)
    connection = _connection(url)
    headers = {"Content-Type": "application/json"}
    if os.environ.get("GPUSERVE_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['GPUSERVE_API_KEY']}"
    try:
        connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(_SILENCE_MAX_S)
        connection.request("POST", "/v1/chat/completions", json.dumps(request).encode(), headers)
        response = connection.getresponse()
    except TimeoutError:
        connection.close()
        raise TimedOut(f"{endpoint} does not answer", "gpuserve status shows the router") from None
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise Internal(f"{endpoint} cannot be reached: {error}", "gpuserve status shows the router") from None
    if response.status != 200:
        raw = response.read(_ERROR_MAX_BYTES)
        connection.close()
        raise _refusal(response.status, raw)
    return connection, response


def pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    """The text of a stream as it comes, without what could drive a terminal.

    :raises Internal: the stream carried an error, or ended without its end mark.
    """
    while line := response.readline():
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        chunk: Any = json.loads(data)
        if "error" in chunk:
            raise Internal(f"the answer broke off: {_message(chunk)}", "try again")
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            for part in (delta.get("reasoning_content"), delta.get("content")):
                if isinstance(part, str) and part:
                    yield "\n".join(clean(one) for one in part.split("\n"))
    raise Internal("the answer ended without its end mark", "try again")


def _refusal(status: int, raw: bytes) -> GpuserveError:
    try:
        message = _message(json.loads(raw))
    except ValueError:
        message = clean(raw[:200].decode(errors="replace"))
    if status in {401, 403}:
        return Denied(f"the router wants an API key: {message}", "set GPUSERVE_API_KEY")
    if status in {429, 503}:
        return Conflict(message, "try again; gpuserve status shows the replicas")
    return Refused(f"{status}: {message}")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return clean(str(text or body))[:500]
