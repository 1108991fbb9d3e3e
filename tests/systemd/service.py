"""The service in the container, as an operator and its clients see it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.e2e.box import until
from tests.systemd.container import GPUSERVE, Container

ENDPOINT = "http://127.0.0.1:8000"
STREAM_TOKENS = 250
"""Five seconds at 20 ms a token: longer than a restart. One follows the other for as long as the load lasts."""


def status(systemd: Container) -> dict[str, Any] | None:
    """None: no daemon answers."""
    printed = systemd.run(GPUSERVE, "status", "--json", check=False)
    found: dict[str, Any] = json.loads(printed) if printed else {}
    return found if "replicas" in found else None


def serving(systemd: Container) -> dict[str, Any]:
    """The status, once both replicas take requests."""

    def ready() -> dict[str, Any] | None:
        found = status(systemd)
        rows = found["replicas"] if found else []
        return found if len(rows) == 2 and all(r["rotation"] == "in" for r in rows) else None

    try:
        return until(ready, "both replicas in rotation", 100, every_s=0.1)
    except AssertionError as late:
        raise AssertionError(f"{late}; {systemd.journal()}") from None


def pids(found: dict[str, Any]) -> dict[str, int]:
    return {row["id"]: row["pid"] for row in found["replicas"]}


def show(systemd: Container, unit: str, name: str) -> str:
    return systemd.run("systemctl", "show", "--property", name, "--value", unit).strip()


def ask(systemd: Container, endpoint: str = ENDPOINT) -> int:
    """One request; its status code."""
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "My order is late."}]})
    code = (
        "import json, sys, requests\n"
        "print(requests.post(sys.argv[1], json=json.loads(sys.argv[2]), timeout=60).status_code)"
    )
    return int(
        systemd.run(
            "/opt/gpuserve/bin/python", "-c", code, f"{endpoint}/v1/chat/completions", body, timeout_s=90
        )
    )


@contextlib.contextmanager
def load(systemd: Container, kind: str = "both") -> Iterator[None]:
    """Requests and one stream after the other while the block runs, or one round of streams alone: every one must succeed."""
    program = systemd.beside(
        sys.executable, "-m", "tests.systemd.load", ENDPOINT, "tiny", str(STREAM_TOKENS), kind,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "under load\n", program.communicate(timeout=60)[1]
        yield
        said, complaints = program.communicate(timeout=150)
        assert program.returncode == 0, (said, complaints, systemd.journal())
    finally:
        program.kill()
        program.wait(10)
