"""One start: wait for the turn, write the intent, fork the shim, attach to it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pwd
import secrets
import socket
import time
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING

import gpuserved
from gpuserved.api.errors import GpuserveError
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind, Timer
from gpuserved.core.placement import SIM_PREFIX
from gpuserved.core.profile import Profile
from gpuserved.core.state import State
from gpuserved.engines.base import Launch, LaunchContext
from gpuserved.host.failpoint import reach
from gpuserved.host.gpulock import GpuHeld, release
from gpuserved.host.shimclient import LOG_KEEP, LOG_MAX_BYTES, launch, replica_spec
from gpuserved.host.sweep import end_start
from gpuserved.replica.process import ReplicaProcess
from gpuserved.replica.services import GpuSetAside
from gpuserved.replica.start_files import StartNote, log_path, prune_logs, run_folder, write_note

if TYPE_CHECKING:
    from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

LEASE_WAIT_S = 5.0
LEASE_POLL_S = 0.05


def model_key(profile: Profile) -> Hashable:
    """Starts with the same key share caches."""
    return (profile.engine.value, profile.model, profile.python, profile.tensor_parallel_size)


async def run(owner: ReplicaController, generation: int) -> None:
    """Start `generation`; the outcome is posted to the owner. Cancelled before the fork: nothing was started."""
    around, assignment = owner.around, owner.assignment
    owner.disarm(
        Timer.START_STALL
    )  # the first replica of a model may load for an hour: who waits for it has not stalled
    try:
        await around.gate.enter(owner.id, assignment.gpu_uuids, model_key(assignment.profile))
        await around.gpus_free(owner.id, assignment.gpu_uuids)
    except asyncio.CancelledError:
        owner.post(EventKind.EXITED, generation=generation)
        return
    except GpuserveError as error:
        kind = CauseKind.GPU_QUARANTINED if isinstance(error, GpuSetAside) else CauseKind.SPAWN_FAILED
        cause = Cause(kind, f"could not be started: {error.message}")
        owner.post(EventKind.SPAWN_FAILED, generation=generation, cause=cause)
        return
    owner.progress_at_start()
    reach("spawn.turn")
    try:
        process, address = await asyncio.shield(_fork(owner, generation))
    except asyncio.CancelledError:
        # The fork cannot be called back. It ends by itself, and its process is then the owner's to terminate.
        return
    except (GpuserveError, OSError) as error:
        message = error.message if isinstance(error, GpuserveError) else (error.strerror or str(error))
        owner.post(EventKind.SPAWN_FAILED, generation=generation, cause=_spawn_cause(message, error))
        return
    log.info("%s: generation %d started as PID %s at %s", owner.id, generation, process.pid, address)


def _spawn_cause(message: str, error: GpuserveError | OSError) -> Cause:
    number = getattr(error, "errno", None)
    transient = number in {errno.EAGAIN, errno.ENOMEM, errno.ENOSPC}
    kind = CauseKind.OUT_OF_MEMORY if transient else CauseKind.SPAWN_FAILED
    if isinstance(error, GpuHeld):
        kind = CauseKind.GPU_HELD
    return Cause(kind, f"could not be started: {message}")


async def _fork(owner: ReplicaController, generation: int) -> tuple[ReplicaProcess, str]:
    leases = await _leases(owner)
    reach("spawn.leased")
    try:
        return await _fork_with(owner, generation, leases)
    finally:
        release(leases)  # the shim's descriptors hold them now
        reach("spawn.released")


async def _fork_with(
    owner: ReplicaController, generation: int, leases: tuple[int, ...]
) -> tuple[ReplicaProcess, str]:
    """:param leases: descriptors that the shim keeps, so that the GPUs are leased while the replica runs."""
    around, profile = owner.around, owner.assignment.profile
    nonce = secrets.token_hex(6)
    folder = run_folder(around.roots, nonce)
    folder.mkdir(mode=0o700, parents=True)
    reach("spawn.folder")
    made = _command(owner, generation, nonce, folder)
    path = log_path(around.roots, owner.id, generation)
    path.parent.mkdir(parents=True, exist_ok=True)
    prune_logs(around.roots, owner.id)
    owner.started(made.address, around.engine(profile).installed(profile))
    note = StartNote(
        owner.id,
        profile.name,
        generation,
        nonce,
        made.address,
        assignment_uuids(owner),
        owner.installed,
        gpuserved.__version__,
    )
    write_note(folder, note)
    reach("spawn.noted")
    await around.record_intent()
    reach("spawn.recorded")
    spec = replica_spec(
        replica=owner.id, generation=generation, nonce=nonce, folder=folder, argv=made.argv, env=made.env, cwd=made.cwd,
        log_path=path, log_max_bytes=_log_max_bytes(), log_keep=LOG_KEEP, orphan_ttl_s=around.orphan_ttl_s,
        drain_s=profile.limits.drain_s, term_grace_s=profile.limits.term_grace_s, keep_fds=leases,
    )  # fmt: skip
    try:
        await launch(spec, pass_fds=leases)
    except GpuserveError:
        # A shim that was killed half-way may have left the engine, with the GPU's memory.
        await end_start(folder, nonce)
        raise
    reach("spawn.answered")
    dying, ended = owner.callbacks(generation)
    process = ReplicaProcess(folder, nonce, dying, ended)
    process.shim_version = note.version
    owner.attached(process)
    await process.attach()
    reach("spawn.attached")
    owner.watch.begin()
    around.changed(owner.id, owner.r.state.value)
    if owner.r.generation != generation or owner.r.state is not State.STARTING:
        await process.terminate()  # the stop came while the fork was under way
    return process, made.address


async def _leases(owner: ReplicaController) -> tuple[int, ...]:
    """Lease the replica's GPUs host-wide. The shim of the start before may need a moment to end.

    :raises GpuHeld: somebody else has them.
    """
    locks, assignment = owner.around.gpu_locks, owner.assignment
    uuids = [uuid for uuid in assignment.gpu_uuids if not uuid.startswith(SIM_PREFIX)]
    if locks is None or not uuids:
        return ()
    share = assignment.profile.gpu_share or 1.0
    deadline = time.monotonic() + LEASE_WAIT_S
    while True:
        try:
            return tuple(locks.take(uuids, share, owner.id, _user()))
        except GpuHeld:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(LEASE_POLL_S)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def assignment_uuids(owner: ReplicaController) -> tuple[str, ...]:
    """The GPUs that the owner's next process gets."""
    return owner.assignment.gpu_uuids


def _log_max_bytes() -> int:
    wanted = os.environ.get("GPUSERVE_LOG_MAX_BYTES", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else LOG_MAX_BYTES


def _command(owner: ReplicaController, generation: int, nonce: str, folder: Path) -> Launch:
    around, assignment = owner.around, owner.assignment
    engine = around.engine(assignment.profile)
    port = _free_port() if engine.wants_port(assignment.profile) else None
    return engine.launch(
        LaunchContext(
            profile=assignment.profile,
            replica=owner.id,
            generation=generation,
            nonce=nonce,
            run_dir=folder,
            cache_dir=around.roots.cache,
            gpu_indexes=assignment.gpu_indexes,
            gpu_uuids=assignment.gpu_uuids,
            hf_token=around.hf_token,
            port=port,
        )
    )


def _free_port() -> int:
    """A loopback port that is free now; the engine binds it, and fails its start where somebody was faster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
