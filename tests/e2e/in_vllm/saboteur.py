"""Breaks a real vLLM from inside: vLLM loads it as `--middleware saboteur.Saboteur` and it runs in vLLM's API server.

GPUSERVE_TEST_SABOTAGE names a file of the shape of the look-alike's faults file: {"REPLICA@GENERATION" or "*": {fault: value}}. It is
read at each request, so that a replica need not load again to be broken or mended. It runs in vLLM's environment: nothing of
gpuserve can be imported here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ESCAPE = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork() and os._exit(0)\n    time.sleep(3600)\n"
"""Leaves session and group by a double fork: vLLM starts no such process, plugins and tools of its users do."""


class Saboteur:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self._app = app
        subprocess.run([sys.executable, "-I", "-S", "-c", ESCAPE], check=True)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        faults = _faults() if scope["type"] == "http" else {}
        if "bad_metrics" in faults and scope["path"] == "/metrics":
            await self._metrics(scope, receive, send, faults["bad_metrics"])
        elif faults and scope["method"] == "POST":
            await self._post(scope, receive, send, faults)
        else:
            await self._app(scope, receive, send)

    async def _post(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, faults: dict[str, Any]
    ) -> None:
        if "answer" in faults:
            transport = _transport(send)
            transport.write(faults["answer"].encode("latin-1"))
            transport.close()
        if "answer" in faults or faults.get("accept_never_answer"):
            await _left(receive)
            return
        if "log_flood" in faults:
            for number in range(int(faults["log_flood"])):
                print(f"flood {number} " + "x" * 100, flush=True)
        if "crash_on_prompt" in faults:
            message = await receive()
            if faults["crash_on_prompt"].encode() in message["body"]:
                _kill_engine()
            receive = _first(message, receive)
        await self._app(scope, receive, send)

    async def _metrics(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, kind: str
    ) -> None:
        head: list[Message] = []
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.append(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, collect)
        kept = [pair for pair in head[0]["headers"] if pair[0].lower() != b"content-length"]
        await send({**head[0], "headers": kept})
        body = _spoiled(b"".join(parts).decode(), kind).encode()
        # uvicorn drops what is sent to a client that has left: without this wait the loop would spin for ever.
        left = asyncio.ensure_future(_left(receive))
        while kind == "endless" and not left.done():
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0)
        left.cancel()
        await send({"type": "http.response.body", "body": body})


async def _left(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _faults() -> dict[str, Any]:
    file = Path(os.environ["GPUSERVE_TEST_SABOTAGE"])
    content: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
    mine = f"{os.environ['GPUSERVE_REPLICA']}@{os.environ['GPUSERVE_GENERATION']}"
    return content.get("*", {}) | content.get(mine, {})


def _spoiled(text: str, kind: str) -> str:
    if kind == "malformed":
        return "vllm:num_requests_running{engine=\n{{{ not prometheus \x01\nvllm:num_requests_waiting one\n"
    if kind == "nan":
        lines = text.splitlines()
        return "".join(
            f"{line.rpartition(' ')[0]} NaN\n" if line.startswith("vllm:") else line + "\n" for line in lines
        )
    if kind == "duplicate":
        return text + text.replace(" 0.0\n", " 7.0\n")
    return text + "# " + "x" * (8 << 20) + "\n" if kind == "huge" else text


def _transport(send: Send) -> Any:
    """The connection below uvicorn's `send`: what is not HTTP cannot be sent through it."""
    found: Any = send
    while not hasattr(getattr(found, "__self__", None), "transport"):
        names = dict(zip(found.__code__.co_freevars, found.__closure__, strict=True))
        found = names["send"].cell_contents
    return found.__self__.transport


def _first(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _kill_engine() -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            title = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"VLLM::EngineCore" in title:
            os.kill(int(stat.parent.name), signal.SIGKILL)
