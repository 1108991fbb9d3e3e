"""One start, from a request to a running process: lease its GPUs, write down what is meant, fork the shim."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pwd
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import Roots
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.placement import SIM_PREFIX
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine, Launch, LaunchContext
from gpuserved.host.failpoint import reach
from gpuserved.host.gpulock import GpuHeld, GpuLocks, release
from gpuserved.host.shimclient import LOG_KEEP, LOG_MAX_BYTES, launch, replica_spec
from gpuserved.host.sweep import end_start
from gpuserved.replica.services import GpuSetAside
from gpuserved.replica.start_files import Start, StartNote, log_path, prune_logs, run_folder, write_note

log = logging.getLogger(__name__)

LEASE_WAIT_S = 5.0
LEASE_POLL_S = 0.05
_PASSES = frozenset({errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE})
"""A host that has run out of something now may have it later."""


@dataclass(frozen=True)
class StartRequest:
    """What is to run, and where its files go."""

    assignment: Assignment
    generation: int
    engine: Engine
    roots: Roots
    gpu_locks: GpuLocks | None
    """Host-wide leases; None where GPUs are on paper."""
    orphan_ttl_s: float | None
    hf_token: str | None = field(repr=False)

    @property
    def replica(self) -> str:
        """`PROFILE-N`."""
        return self.assignment.replica


def model_key(profile: Profile) -> Hashable:
    """Starts with the same key share caches."""
    return (profile.engine.value, profile.model, profile.python, profile.tensor_parallel_size)


async def start(request: StartRequest, record_intent: Callable[[], Awaitable[None]]) -> Start:
    """Start a process under a shim of its own. Of a start that fails nothing is left, neither a process nor its folder.

    :param record_intent: awaited when all that is meant is on disk, before the fork.
    :raises GpuHeld: somebody else has leased a GPU.
    :raises GpuserveError: or OSError: something else was in the way.
    """
    leases = await _leases(request)
    reach("spawn.leased")
    try:
        return await _start_with(request, leases, record_intent)
    finally:
        release(leases)  # the shim's descriptors hold them now
        reach("spawn.released")


async def _start_with(
    request: StartRequest, leases: tuple[int, ...], record_intent: Callable[[], Awaitable[None]]
) -> Start:
    """:param leases: descriptors that the shim keeps, so that the GPUs are leased while the replica runs."""
    nonce = secrets.token_hex(6)
    folder = run_folder(request.roots, nonce)
    folder.mkdir(mode=0o700, parents=True)
    try:
        reach("spawn.folder")
        made = _command(request, nonce, folder)
        note = _note(request, nonce, made.address)
        write_note(folder, note)
        reach("spawn.noted")
        await record_intent()
        reach("spawn.recorded")
        await launch(_spec(request, made, nonce, folder, leases), pass_fds=leases)
    except Exception:
        await end_quietly(folder, nonce)
        raise
    reach("spawn.answered")
    return Start(folder, note)


async def end_quietly(folder: Path, nonce: str) -> None:
    """Leave nothing of a start that failed: a shim that was killed half-way may have left the engine, with the GPU's memory."""
    try:
        await end_start(folder, nonce)
    except OSError as error:  # the start's own failure is what there is to say
        log.warning("what is left of a start in %s could not be ended: %s", folder, error)


def cause_of(error: BaseException) -> Cause:
    """Why a start did not come to be, of whatever kept it from that."""
    if isinstance(error, GpuserveError):
        why = error.message
    elif isinstance(error, OSError):
        why = error.strerror or str(error)
    else:
        why = f"{type(error).__name__}: {error}"
    kind = CauseKind.SPAWN_FAILED
    if isinstance(error, GpuSetAside):
        kind = CauseKind.GPU_QUARANTINED
    elif isinstance(error, GpuHeld):
        kind = CauseKind.GPU_HELD
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSES:
        kind = CauseKind.OUT_OF_MEMORY
    return Cause(kind, f"could not be started: {why}")


async def _leases(request: StartRequest) -> tuple[int, ...]:
    """Lease the replica's GPUs host-wide. The shim of the start before may need a moment to end.

    :raises GpuHeld: somebody else has them.
    """
    assignment = request.assignment
    uuids = [uuid for uuid in assignment.gpu_uuids if not uuid.startswith(SIM_PREFIX)]
    if request.gpu_locks is None or not uuids:
        return ()
    share = assignment.profile.gpu_share or 1.0
    deadline = time.monotonic() + LEASE_WAIT_S
    while True:
        try:
            return tuple(request.gpu_locks.take(uuids, share, request.replica, _user()))
        except GpuHeld:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(LEASE_POLL_S)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _command(request: StartRequest, nonce: str, folder: Path) -> Launch:
    assignment = request.assignment
    port = _free_port() if request.engine.wants_port(assignment.profile) else None
    return request.engine.launch(
        LaunchContext(
            profile=assignment.profile,
            replica=request.replica,
            generation=request.generation,
            nonce=nonce,
            run_dir=folder,
            cache_dir=request.roots.cache,
            gpu_indexes=assignment.gpu_indexes,
            gpu_uuids=assignment.gpu_uuids,
            hf_token=request.hf_token,
            port=port,
        )
    )


def _free_port() -> int:
    """A loopback port that is free now; the engine binds it, and fails its start where somebody was faster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _note(request: StartRequest, nonce: str, address: str) -> StartNote:
    profile = request.assignment.profile
    return StartNote(
        replica=request.replica,
        profile=profile.name,
        generation=request.generation,
        nonce=nonce,
        address=address,
        gpu_uuids=request.assignment.gpu_uuids,
        installed=request.engine.installed(profile),
        version=gpuserved.__version__,
    )


def _spec(
    request: StartRequest, made: Launch, nonce: str, folder: Path, leases: tuple[int, ...]
) -> dict[str, object]:
    limits = request.assignment.profile.limits
    path = log_path(request.roots, request.replica, request.generation)
    path.parent.mkdir(parents=True, exist_ok=True)
    prune_logs(request.roots, request.replica)
    return replica_spec(
        replica=request.replica, generation=request.generation, nonce=nonce, folder=folder, argv=made.argv, env=made.env,
        cwd=made.cwd, log_path=path, log_max_bytes=_log_max_bytes(), log_keep=LOG_KEEP, orphan_ttl_s=request.orphan_ttl_s,
        drain_s=limits.drain_s, term_grace_s=limits.term_grace_s, keep_fds=leases,
    )  # fmt: skip


def _log_max_bytes() -> int:
    wanted = os.environ.get("GPUSERVE_LOG_MAX_BYTES", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else LOG_MAX_BYTES
