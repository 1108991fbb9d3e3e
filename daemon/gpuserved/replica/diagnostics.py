"""What is kept so that a cause can be found afterwards: evidence before a kill, and the crash card of a start that ended."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gpuserved.api.crash import CrashCard, CrashFigures, CrashGpu, Traceback
from gpuserved.api.roots import Roots
from gpuserved.api.types import GpuView
from gpuserved.core.cause import Cause, ExitInfo
from gpuserved.core.state import Replica
from gpuserved.engines.base import Engine
from gpuserved.host import procfs
from gpuserved.host.logtail import last_lines
from gpuserved.host.statefile import write_atomically
from gpuserved.replica import start_files
from gpuserved.replica.snapshot import ReplicaSnapshot

log = logging.getLogger(__name__)

EVIDENCE_LINES = 200
TRACEBACK_LINES = 4000
"""Log lines looked at: the first error of a large fleet's worker may be a thousand lines before the end."""
SHOWN_LINES = 20
MASK = "********"
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bsk-[\w-]{8,}|(?<=Bearer )\S+")


def save_evidence(roots: Roots, replica: ReplicaSnapshot, cause: Cause) -> None:
    """Write cause, process states with kernel stacks, engine figures and the log's end beside the log. A disk that refuses costs the
    file.
    """
    path = start_files.evidence_path(roots, replica.id, replica.r.generation)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _evidence(roots, replica, cause).encode(errors="replace"))
    except OSError as error:
        log.warning("%s: evidence could not be saved: %s", replica.id, error)


def _evidence(roots: Roots, replica: ReplicaSnapshot, cause: Cause) -> str:
    shim_pid = replica.process.shim_pid if replica.process is not None else None
    table = procfs.processes()
    pids = sorted(procfs.tree(shim_pid, table)) if shim_pid is not None else []
    figures = replica.figures
    parts = [
        f"{replica.id} generation {replica.r.generation}, Unix time {time.time():.0f}",
        f"cause: {cause.message}",
        f"engine: running {figures.running}, waiting {figures.waiting}, KV cache {figures.kv_cache_pct} %, steps {figures.steps}",
        *(_process(pid) for pid in pids),
        "log:",
        *last_lines(start_files.log_path(roots, replica.id, replica.r.generation), EVIDENCE_LINES),
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


def save_crash_card(
    roots: Roots,
    before: ReplicaSnapshot,
    decided: Replica,
    cause: Cause,
    info: ExitInfo | None,
    *,
    engine: Engine,
    oom_killed: bool | None,
    gpus: Sequence[GpuView],
    token: str | None,
) -> CrashCard:
    """Make and save the card of the start that has just ended. A disk that refuses costs the file, not the card.

    :param before: the replica while the end was not yet decided on: its figures and GPUs are those of the start.
    :param decided: what has become of it.
    :param info: how the API process ended; None: nobody knows.
    :param token: the hub's, which must not get into the card.
    """
    profile, generation = before.assignment.profile, decided.generation
    log_path = start_files.log_path(roots, before.id, generation)
    evidence = start_files.evidence_path(roots, before.id, generation)
    lines = _masked(last_lines(log_path, TRACEBACK_LINES), token)
    tracebacks = engine.tracebacks(lines)
    card = CrashCard(
        replica=before.id,
        profile=profile.name,
        model=profile.served_name,
        engine=profile.engine.value,
        generation=generation,
        at=info.at if info is not None else time.time(),
        started_at=before.process.started_at if before.process is not None else None,
        exit_code=info.code if info is not None else None,
        signal=info.signal if info is not None else None,
        oom_killed=oom_killed,
        cause=cause.kind.value,
        message=_masked([cause.message], token)[0],
        lever=engine.lever(cause, [each[-1] for each in tracebacks.values()]),
        state=decided.state.value,
        figures=_figures(before),
        gpus=[_gpu(gpu) for gpu in gpus],
        tracebacks=[Traceback(process=name, lines=each) for name, each in tracebacks.items()],
        last_lines=[line for line in lines if line.strip()][-SHOWN_LINES:],
        log=str(log_path),
        evidence=str(evidence) if evidence.exists() else None,
    )
    try:
        write_atomically(start_files.crash_path(roots, before.id, generation), msgspec.json.encode(card))
    except OSError as error:
        log.warning("%s: the crash card could not be saved: %s", before.id, error)
    return card


def _figures(replica: ReplicaSnapshot) -> CrashFigures:
    found = replica.figures
    return CrashFigures(
        running=found.running, waiting=found.waiting, kv_cache_pct=found.kv_cache_pct, steps=found.steps
    )


def _gpu(gpu: GpuView) -> CrashGpu:
    return CrashGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        state=gpu.state,
        memory_used_bytes=gpu.memory_used_bytes,
        memory_total_bytes=gpu.memory_total_bytes,
        temperature_c=gpu.temperature_c,
    )


def _masked(lines: Iterable[str], token: str | None) -> list[str]:
    """What looks like a credential does not leave the log."""
    cleaned = (line.replace(token, MASK) if token else line for line in lines)
    return [_SECRETS.sub(MASK, line) for line in cleaned]
