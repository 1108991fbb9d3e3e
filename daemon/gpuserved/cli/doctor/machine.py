"""The machine itself: disks, shared memory, limits, kernel features, clock."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

from gpuserved.cli.doctor.base import GIB, Finding, Host, fail, gib, ok, warn

_SHM = "/dev/shm"  # noqa: S108 - its size is the question
_SHM_MIN_BYTES, _SHM_GOOD_BYTES = 256 * 1024**2, GIB
"""A container gets 64 MiB unless asked. One tensor-parallel vLLM takes some 100 MiB there, NCCL and media more."""
_NOFILE_GOOD = 16384
"""A router may hold 16,384 connections; it raises its soft limit to the hard one itself."""
_DISK_MIN_BYTES, _DISK_GOOD_BYTES = GIB, 5 * GIB
"""State and logs are small; compiled kernels take a few GiB."""
_PR_GET_CHILD_SUBREAPER = 37
_CLOCK_WAIT_S = 5.0


def disk(host: Host) -> list[Finding]:
    """Room where the daemon writes."""
    findings, seen = [], set()
    for folder in (host.roots.state, host.roots.log, host.roots.cache):
        above = next(one for one in (folder, *folder.parents) if one.exists())
        device = above.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(above).free
        text = f"{gib(free)} free for {folder}"
        if free < _DISK_MIN_BYTES:
            findings.append(fail("disk", text, f"du -xh {above} | sort -h | tail"))
        elif free < _DISK_GOOD_BYTES:
            findings.append(
                warn("disk", f"{text}: compiled kernels may not fit", f"du -xh {above} | sort -h | tail")
            )
        else:
            findings.append(ok("disk", text))
    return findings


def shared_memory(_host: Host) -> list[Finding]:
    """The shared memory through which vLLM's processes pass tensors."""
    try:
        usage = shutil.disk_usage(_SHM)
    except OSError:
        return [
            fail(
                "shm",
                f"{_SHM} is missing: vLLM and NCCL need it",
                "sudo mount -t tmpfs -o size=8G tmpfs /dev/shm",
            )
        ]
    return [judge_shm(usage.total, usage.free)]


def judge_shm(total_bytes: int, free_bytes: int) -> Finding:
    """What a size of /dev/shm means."""
    text = f"{_SHM} has {gib(total_bytes)}, {gib(free_bytes)} free"
    fix = "docker run --shm-size 8g; on a host: sudo mount -o remount,size=8G /dev/shm"
    if total_bytes < _SHM_MIN_BYTES:
        return fail("shm", f"{text}: tensor parallel replicas will not start", fix)
    if free_bytes < _SHM_GOOD_BYTES:
        return warn("shm", text, fix if total_bytes < 2 * _SHM_GOOD_BYTES else "ls -lS /dev/shm | head")
    return ok("shm", text)


def limits(_host: Host) -> list[Finding]:
    """Open files, locked memory, processes."""
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        judge_nofile(nofile[1]),
        judge_memlock(
            resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], gpus=len(list(Path("/dev").glob("nvidia[0-9]*")))
        ),
    ]


def judge_nofile(hard: int) -> Finding:
    """What the hard limit of open files means."""
    shown = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < _NOFILE_GOOD:
        return warn("limits", f"{shown} open files at most: the router serves fewer connections than it could",
                    "LimitNOFILE=65536 in the unit, or '* hard nofile 65536' in /etc/security/limits.d/gpuserve.conf")  # fmt: skip
    return ok("limits", f"{shown} open files at most")


def judge_memlock(soft: int, *, gpus: int) -> Finding:
    """What the limit of locked memory means: RDMA between GPUs and CPU offload pin memory."""
    if soft == resource.RLIM_INFINITY:
        return ok("limits", "locked memory is unlimited")
    text = f"locked memory up to {soft // 1024} KiB"
    if gpus > 1:
        return warn("limits", f"{text}: CPU offload and RDMA may fail",
                    "LimitMEMLOCK=infinity in the unit; docker run --ulimit memlock=-1")  # fmt: skip
    return ok("limits", text)


def kernel(_host: Host) -> list[Finding]:
    """What the shims and the supervisor rely on."""
    release = os.uname().release
    findings = []
    try:
        os.close(os.pidfd_open(os.getpid()))
        findings.append(ok("kernel", f"Linux {release}: pidfd works"))
    except OSError as error:
        findings.append(
            fail(
                "kernel",
                f"Linux {release}: pidfd_open fails: {error.strerror}",
                "a kernel of 5.3 or newer, and a seccomp profile that allows pidfd_open",
            )
        )
    libc = ctypes.CDLL(None, use_errno=True)
    was = ctypes.c_int()
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0) != 0:
        findings.append(
            fail(
                "kernel",
                "prctl(PR_GET_CHILD_SUBREAPER) fails: a shim could not find what escapes it",
                "a seccomp profile that allows prctl",
            )
        )
    findings.append(_cgroup())
    return findings


def _cgroup() -> Finding:
    """What is delegated here. Replicas are found by their parents and their mark all the same; a shim can do more where asked."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return ok("kernel", "no cgroup version 2: replicas are ended by their process tree")
    folder = Path("/sys/fs/cgroup") / path.lstrip("/")
    if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
        return ok("kernel", f"cgroup version 2, delegated at {path}")
    return ok(
        "kernel",
        "cgroup version 2, not delegated to this user: replicas are ended by their process tree (the service has Delegate=yes)",
    )


def clock(_host: Host) -> list[Finding]:
    """A clock that jumps makes keys, logs and deadlines wrong."""
    built = Path(__file__).stat().st_mtime
    if time.time() < built - 86_400:
        return [
            fail(
                "clock",
                f"the clock says {time.strftime('%Y-%m-%d %H:%M')}, before this release was installed",
                "sudo timedatectl set-ntp true",
            )
        ]
    state = _synchronised()
    if state is False:
        return [warn("clock", "not synchronised", "sudo timedatectl set-ntp true")]
    return [ok("clock", "synchronised" if state else "whether it is synchronised is not known here")]


def _synchronised() -> bool | None:
    """None: nothing on this machine tells."""
    try:
        done = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True, text=True, timeout=_CLOCK_WAIT_S, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())
