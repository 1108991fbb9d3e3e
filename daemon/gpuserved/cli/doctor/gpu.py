"""Driver, NVML, and who else is on the GPUs."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError
from gpuserved.cli.doctor.base import Finding, Host, fail, gib, ok, warn
from gpuserved.fleet.quarantine import FILE, Quarantine
from gpuserved.host import gpulock, nvml
from gpuserved.host.logtail import clean
from gpuserved.host.nvml import Nvml, NvmlUnavailable
from gpuserved.telemetry.nvml import NvmlProvider
from gpuserved.telemetry.provider import OK as GPU_OK

NAME = "gpu"
_NVIDIA_VENDOR = "0x10de"
_FOREIGN_MIN_BYTES = 256 * 1024**2
"""Display servers and the like hold less; vLLM has room for them."""


def check(host: Host) -> list[Finding]:
    """The driver through NVML, else why there is none."""
    try:
        library = Nvml()
    except NvmlUnavailable as error:
        return [_without(error), *quarantined(host)]
    version, cuda = library.driver_version() or "unknown", library.cuda_version()
    newest = f", CUDA up to {cuda[0]}.{cuda[1]}" if cuda else ""
    try:
        provider = NvmlProvider(host.env.get("CUDA_VISIBLE_DEVICES"), library)
    except NvmlUnavailable as error:
        return [fail(NAME, f"driver {version}: {error}", "nvidia-smi; dmesg | grep -i -e nvrm -e xid")]
    names = Counter(info.name for info in provider.inventory())
    shown = (
        ", ".join(f"{count} x {name}" for name, count in names.items())
        or provider.reason
        or "no GPU is visible"
    )
    found = [ok(NAME, f"driver {version}{newest}: {shown}")]
    if host.env.get("CUDA_VISIBLE_DEVICES") is not None:
        found.append(warn(NAME, f"CUDA_VISIBLE_DEVICES={host.env['CUDA_VISIBLE_DEVICES']} limits a daemon started here",
                          "unset CUDA_VISIBLE_DEVICES; gpus in a profile chooses"))  # fmt: skip
    return [*found, *_samples(provider, host), *quarantined(host), *_leases(provider, host)]


def _samples(provider: NvmlProvider, host: Host) -> list[Finding]:
    ours = _our_pids(host)
    found = []
    for sample in provider.sample():
        if sample.state != GPU_OK:
            found.append(fail(NAME, f"GPU {sample.index} ({sample.uuid}) is {sample.state}",
                              f"sudo nvidia-smi --gpu-reset -i {sample.index}, or reboot"))  # fmt: skip
        found += [
            warn(NAME, f"GPU {sample.index}: PID {process.pid}, not ours, holds {gib(process.memory_bytes or 0)}",
                 f"ps -o user,etime,args -p {process.pid}")
            for process in sample.processes or ()
            if process.pid not in ours and (process.memory_bytes or 0) >= _FOREIGN_MIN_BYTES
        ]  # fmt: skip
    return found


def quarantined(host: Host) -> list[Finding]:
    """GPUs that this root's daemon has set aside, whether it runs or not."""
    quarantine = Quarantine(host.roots.state / FILE)
    try:
        quarantine.load(touch=False)
    except GpuserveError as error:
        return [fail(NAME, clean(error.message), error.hint or "gpuserve logs --daemon")]
    found = []
    if quarantine.problem is not None:
        found.append(
            warn(NAME, clean(quarantine.problem), "gpuserve status; quarantine anew what is to stay aside")
        )
    return found + [
        fail(NAME, f"GPU {record.index} ({record.uuid}) is quarantined: {clean(record.explain())}",
             f"gpuserve release {record.index}")
        for record in sorted(quarantine.of.values(), key=lambda record: record.index)
    ]  # fmt: skip


def _leases(provider: NvmlProvider, host: Host) -> list[Finding]:
    """Parts of GPUs that other daemons have leased. The kernel ends a lease with its holder: there are no stale ones."""
    folder = gpulock.folder(host.env)
    if folder is None:
        return [warn(NAME, "no folder for leases: daemons of two users could place replicas on one GPU",
                     "sudo mount -t tmpfs tmpfs /dev/shm, or GPUSERVE_LOCK_DIR for every daemon")]  # fmt: skip
    locks = gpulock.GpuLocks(folder, str(host.roots.run))
    return [
        warn(NAME, f"GPU {gpu.index}: {held.fraction:.0%} leased by {held.holder}, of another daemon",
             "stop it there, or name other GPUs in gpus")
        for gpu in provider.inventory()
        for held in locks.held_by_others(gpu.uuid)
    ]  # fmt: skip


def _our_pids(host: Host) -> set[int]:
    """Processes that a daemon here calls its own; empty where none answers."""
    try:
        status = ControlClient(host.socket).status()
    except GpuserveError:
        return set()
    return {owner.pid for gpu in status.gpus for owner in gpu.owners if owner.replica is not None}


def _without(error: NvmlUnavailable) -> Finding:
    module = _module_version()
    if error.error == nvml.MISMATCH:
        loaded = f", the kernel has {module} loaded" if module else ""
        return fail(
            NAME,
            f"driver and library are of different versions{loaded}: it was updated without a restart",
            "sudo reboot",
        )
    if error.error == nvml.NO_PERMISSION:
        return fail(
            NAME,
            f"this user may not use the GPUs: {error}",
            "ls -l /dev/nvidia*; sudo usermod -aG video,render $USER",
        )
    if os.path.exists("/dev/kfd"):
        return fail(
            NAME,
            "an AMD GPU: this version supports NVIDIA alone",
            'engine = "command" runs a server you start yourself',
        )
    cards = _nvidia_cards()
    if cards or module:
        what = f"{cards} NVIDIA card{'s' if cards != 1 else ''}" if cards else f"kernel module {module}"
        return fail(
            NAME,
            f"{what}, and no working driver: {error}",
            "sudo apt-get install nvidia-driver, or the distribution's own; then nvidia-smi",
        )
    return warn(NAME, "no NVIDIA GPU: the CPU build of vLLM, llamacpp, command and sim can run",
                "on a GPU host: nvidia-smi; in a container: docker run --gpus all")  # fmt: skip


def _module_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module\D*([\d.]+)", text)
    return found[1] if found else "unknown"


def _nvidia_cards() -> int:
    """NVIDIA display and 3D controllers on the PCI bus."""
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA_VENDOR and kind.startswith("0x03")
    return count


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs; None where there is no driver."""
    try:
        return Nvml().cuda_version()
    except NvmlUnavailable:
        return None
