"""Makes the crash card of a start that ended, and keeps it beside the log of that start."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from gpuserved.api.crash import CrashCard, CrashFigures, CrashGpu, Traceback
from gpuserved.core.cause import Cause, ExitInfo
from gpuserved.core.state import Replica
from gpuserved.host.logtail import last_lines
from gpuserved.host.statefile import write_atomically
from gpuserved.replica import start_files
from gpuserved.replica.probe import EngineFigures

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

TRACEBACK_LINES = 4000
"""Log lines looked at: the first error of a large fleet's worker may be a thousand lines before the end."""
SHOWN_LINES = 20
MASK = "********"
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bsk-[\w-]{8,}|(?<=Bearer )\S+")


def record(
    owner: ReplicaController,
    decided: Replica,
    cause: Cause,
    info: ExitInfo | None,
    figures: EngineFigures,
    started_at: float | None,
    *,
    oom_killed: bool | None,
) -> CrashCard:
    """Make and save the card of the start that has just ended. A disk that refuses costs the file, not the card."""
    around, generation = owner.around, decided.generation
    profile = owner.assignment.profile
    log_path = start_files.log_path(around.roots, owner.id, generation)
    lines = _masked(last_lines(log_path, TRACEBACK_LINES), around.hf_token)
    engine = around.engine(profile)
    tracebacks = engine.tracebacks(lines)
    evidence = start_files.evidence_path(around.roots, owner.id, generation)
    card = CrashCard(
        replica=owner.id,
        profile=profile.name,
        model=profile.served_name,
        engine=profile.engine.value,
        generation=generation,
        at=info.at if info is not None else time.time(),
        started_at=started_at,
        exit_code=info.code if info is not None else None,
        signal=info.signal if info is not None else None,
        oom_killed=oom_killed,
        cause=cause.kind.value,
        message=_masked([cause.message], around.hf_token)[0],
        lever=engine.lever(cause, [each[-1] for each in tracebacks.values()]),
        state=decided.state.value,
        figures=_figures(figures),
        gpus=[
            CrashGpu(
                index=gpu.index,
                uuid=gpu.uuid,
                state=gpu.state,
                memory_used_bytes=gpu.memory_used_bytes,
                memory_total_bytes=gpu.memory_total_bytes,
                temperature_c=gpu.temperature_c,
            )
            for gpu in around.gpu_views(owner.assignment.gpu_uuids)
        ],
        tracebacks=[Traceback(process=name, lines=each) for name, each in tracebacks.items()],
        last_lines=[line for line in lines if line.strip()][-SHOWN_LINES:],
        log=str(log_path),
        evidence=str(evidence) if evidence.exists() else None,
    )
    try:
        write_atomically(
            start_files.crash_path(around.roots, owner.id, generation), msgspec.json.encode(card)
        )
    except OSError as error:
        log.warning("%s: the crash card could not be saved: %s", owner.id, error)
    return card


def _figures(found: EngineFigures) -> CrashFigures:
    return CrashFigures(
        running=found.running, waiting=found.waiting, kv_cache_pct=found.kv_cache_pct, steps=found.steps
    )


def _masked(lines: Iterable[str], token: str | None) -> list[str]:
    """What looks like a credential does not leave the log."""
    cleaned = (line.replace(token, MASK) if token else line for line in lines)
    return [_SECRETS.sub(MASK, line) for line in cleaned]
