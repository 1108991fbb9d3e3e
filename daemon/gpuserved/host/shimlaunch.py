"""Start shims."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.host import failpoint
from gpuserved.host.deadline import within

PROTOCOL_VERSION = 1
LOG_MAX_BYTES = 64 * 1024 * 1024
LOG_KEEP = 3
"""Segments beside the live file: at most 256 MiB for one start."""
PROGRAM = Path(gpuserved.__file__).parent / "shim" / "__main__.py"
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", failpoint.VARIABLE)  # what loads an interpreter; no secrets


class ShimError(GpuserveError):
    """A shim did not start its child, refused a request, or is gone. `errno` where a system call said so."""

    def __init__(self, message: str, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint)
        self.errno = errno


@dataclass(frozen=True)
class Started:
    """A shim and its child run."""

    shim_pid: int
    pid: int


def replica_spec(
    *,
    replica: str,
    generation: int,
    nonce: str,
    folder: Path,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    cwd: str,
    log_path: Path,
    log_max_bytes: int,
    log_keep: int,
    orphan_ttl_s: float | None,
    drain_s: float,
    term_grace_s: float,
    cgroup: str | None = None,
    keep_fds: tuple[int, ...] = (),
) -> dict[str, object]:
    """The spec of a replica's shim (docs/architecture.md); pass `keep_fds` to `launch` as well."""
    return {
        "v": PROTOCOL_VERSION, "role": "replica", "id": replica, "generation": generation, "nonce": nonce,
        "dir": str(folder), "argv": list(argv), "env": dict(env), "cwd": cwd,
        "log": {"path": str(log_path), "max_bytes": log_max_bytes, "keep": log_keep},
        "orphan_ttl_s": orphan_ttl_s, "drain_s": drain_s, "term_grace_s": term_grace_s, "cgroup": cgroup,
        "keep_fds": list(keep_fds),
    }  # fmt: skip


def router_spec(
    *,
    name: str,
    nonce: str,
    folder: Path,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    cwd: str,
    log_path: Path,
    log_max_bytes: int,
    log_keep: int,
    listen_fd: int,
) -> dict[str, object]:
    """The spec of the router's shim; pass `listen_fd` to `launch` as well."""
    return {
        "v": PROTOCOL_VERSION, "role": "router", "id": name, "nonce": nonce, "dir": str(folder),
        "argv": list(argv), "env": dict(env), "cwd": cwd, "listen_fd": listen_fd,
        "log": {"path": str(log_path), "max_bytes": log_max_bytes, "keep": log_keep},
    }  # fmt: skip


async def launch(
    spec: Mapping[str, object],
    *,
    python: str = sys.executable,
    pass_fds: tuple[int, ...] = (),
    timeout_s: float = 30.0,
) -> Started:
    """Start a shim and, through it, its child. The spec goes over stdin only.

    :raises ShimError: nothing runs and nothing is left behind; except when `timeout_s` passed without an answer (the disk of the
        program hangs): then a shim may yet come up in the spec's folder, and `read_identity` finds it.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-S", str(PROGRAM), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, pass_fds=pass_fds, start_new_session=True, cwd="/",
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )  # fmt: skip
    except OSError as error:
        raise ShimError(f"cannot run {python}: {error.strerror}", errno=error.errno) from None
    assert process.stdout is not None
    assert process.stderr is not None
    failpoint.reach("spawn.forked")
    try:
        line = await within(_exchange(process, json.dumps(spec).encode()), timeout_s)
        if not line:
            said = (await within(process.stderr.read(4096), timeout_s)).decode(errors="replace")
            raise ShimError(f"the shim ended without an answer: {said.strip() or 'it said nothing'}")
    except asyncio.TimeoutError:
        raise ShimError(
            f"the shim gave no answer within {timeout_s:g} s", "look for a hanging disk: dmesg, df"
        ) from None
    finally:
        _let_go(process)
    return _started(line)


async def _exchange(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        failpoint.reach("spawn.told")
    except (BrokenPipeError, ConnectionResetError):
        pass  # it refused early; the answer says why
    line = await process.stdout.readline()
    await process.wait()
    return line


def _let_go(process: asyncio.subprocess.Process) -> None:
    """End the launcher's own child and close its pipes; the shim proper is not its process any more and goes on."""
    # asyncio offers no public way to close the pipes of a process whose descendants still hold the other ends.
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _started(line: bytes) -> Started:
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return Started(int(answer["shim_pid"]), int(answer["pid"]))
        raise ShimError(str(answer["error"]), errno=answer["errno"])
    except (ValueError, KeyError, TypeError):
        raise ShimError(f"the shim's answer makes no sense: {line[:200]!r}") from None
