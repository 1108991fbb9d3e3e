"""Programs on chosen cores."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fetch import Missing

READY_S = 60.0
_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"max_tokens":1}'


@dataclass(frozen=True)
class Started:
    """A candidate that answers."""

    process: subprocess.Popen[Any] | None
    ports: list[int]


def start(
    argv: list[str], cores: Iterable[int], *, batch: bool = False, **more: Any
) -> subprocess.Popen[Any]:
    """Start a program on these cores.

    :param batch: SCHED_BATCH: it does not take the core from another the moment it wakes.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *argv]
    if batch:
        pinned = ["chrt", "--batch", "0", *pinned]
    if shutil.which(pinned[0]) is None:
        raise SystemExit(f"{pinned[0]} is needed (Debian: apt-get install util-linux)")
    return subprocess.Popen(pinned, **{"stdin": subprocess.DEVNULL, **more})


def stop(process: subprocess.Popen[Any]) -> None:
    """End a program and what it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def until_ready(process: subprocess.Popen[Any], port: int, log: Path) -> Started:
    """Wait for the first good answer.

    :raises Missing: it ended, or does not answer in time; with the end of what it wrote.
    """
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("POST", "/v1/chat/completions", _BODY, {"content-type": "application/json"})
            if connection.getresponse().status == 200:
                return Started(process, [port])
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    stop(process)
    wrote = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
    raise Missing(f"does not answer: {wrote[0] if wrote else f'exit {process.returncode}'}")
