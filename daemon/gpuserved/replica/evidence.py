"""What is kept before a kill, so that the cause can still be found afterwards."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserved.core.cause import Cause
from gpuserved.host import procfs
from gpuserved.host.logtail import last_lines
from gpuserved.host.statefile import write_atomically
from gpuserved.replica import start_files

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

LOG_LINES = 200


async def save(owner: ReplicaController, cause: Cause) -> None:
    """Write cause, process states with kernel stacks, engine figures and the log's end beside the log. Never fails."""
    path = start_files.evidence_path(owner.around.roots, owner.id, owner.r.generation)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _text(owner, cause).encode(errors="replace"))
    except OSError as error:
        log.warning("%s: evidence could not be saved: %s", owner.id, error)


def _text(owner: ReplicaController, cause: Cause) -> str:
    process = owner.process
    shim_pid = process.shim_pid if process is not None else None
    table = procfs.processes()
    pids = sorted(procfs.tree(shim_pid, table)) if shim_pid is not None else []
    parts = [
        f"{owner.id} generation {owner.r.generation}, Unix time {time.time():.0f}",
        f"cause: {cause.message}",
        f"engine figures: {owner.watch.figures}",
        *(_process(pid) for pid in pids),
        "log:",
        *last_lines(start_files.log_path(owner.around.roots, owner.id, owner.r.generation), LOG_LINES),
    ]
    return "\n".join(parts) + "\n"


def _process(pid: int) -> str:
    """State, wait channel and kernel stack: what the process waits for. The stack is root's to read."""
    stat = procfs.process(pid)
    lines = [
        f"process {pid} ({_read(pid, 'comm')}) state {stat.state if stat else '?'} wchan {_read(pid, 'wchan')}"
    ]
    lines += [f"    {line}" for line in _read(pid, "stack").splitlines()]
    return "\n".join(lines)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").strip()
    except OSError as error:
        return f"({os.strerror(error.errno or 0)})"
