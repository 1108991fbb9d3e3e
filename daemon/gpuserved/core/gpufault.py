"""What goes wrong with a GPU, and what it means: ignored, a restart of the replica, or a GPU that is set aside. Values in, values out.

Xid numbers mean what NVIDIA's catalogue says of Ampere and later (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with
the Xid Catalog", October 2025): the comment at each row of `XIDS` is its resolution bucket. Where this table is stricter than the
bucket, the comment says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """What follows from a fault. Wire values; the last three set the GPU aside, and say what makes it whole again."""

    IGNORE = "ignore"
    """Reported, no more."""
    RESTART = "restart"
    """The application's own error: its context is gone, the GPU is well."""
    INSPECT = "inspect"
    """Set aside until somebody has looked."""
    RESET = "reset"
    """Set aside until the GPU has been reset."""
    REBOOT = "reboot"
    """Set aside until the host has been restarted."""

    @property
    def quarantines(self) -> bool:
        """True where nothing may be started on the GPU."""
        return self in {Verdict.INSPECT, Verdict.RESET, Verdict.REBOOT}


CURES = {
    Verdict.INSPECT: "look at dmesg and nvidia-smi -q",
    Verdict.RESET: "reset the GPU (sudo nvidia-smi --gpu-reset -i {index}) or restart the host",
    Verdict.REBOOT: "restart the host; a GPU that does this again is to be replaced",
}
"""What an operator does before the release; `{index}` is NVML's."""


@dataclass(frozen=True)
class Meaning:
    """One kind of fault."""

    verdict: Verdict
    name: str
    computes: bool = False
    """The GPU still computes: replicas are drained off it, not killed, and the last one of a model stays."""


_APP, _RESET, _NOTHING = Verdict.RESTART, Verdict.RESET, Verdict.IGNORE

XIDS: dict[int, Meaning] = {
    8: Meaning(_APP, "GPU stopped processing"),  # RESTART_APP
    11: Meaning(_APP, "invalid or corrupted push buffer stream"),  # RESTART_APP
    13: Meaning(_APP, "graphics engine exception"),  # RESTART_APP
    25: Meaning(_APP, "invalid or illegal push buffer stream"),  # RESTART_APP
    31: Meaning(_APP, "GPU memory page fault"),  # RESTART_APP
    32: Meaning(_APP, "invalid or corrupted push buffer stream"),  # RESTART_APP
    37: Meaning(_NOTHING, "driver firmware error"),  # IGNORE
    38: Meaning(_NOTHING, "driver firmware error"),  # IGNORE
    39: Meaning(_APP, "copy engine exception"),  # RESTART_APP
    40: Meaning(_APP, "copy engine exception"),  # RESTART_APP
    41: Meaning(_APP, "copy engine exception"),  # RESTART_APP
    43: Meaning(_APP, "GPU stopped processing"),  # IGNORE: the GPU is well. The context that it names is not
    44: Meaning(_NOTHING, "graphics engine fault during a context switch"),  # IGNORE
    45: Meaning(_NOTHING, "preemptive cleanup"),  # follow the other Xid; also after every kill -9 of a process
    46: Meaning(_RESET, "GPU stopped processing"),  # RESET_GPU
    48: Meaning(_RESET, "double bit ECC error"),  # WORKFLOW_XID_48: reset, unless Xid 94 contained it
    62: Meaning(_RESET, "internal micro-controller halt"),  # RESET_GPU
    63: Meaning(_RESET, "row remapping recorded", computes=True),  # IGNORE; the remap takes effect with a reset only
    64: Meaning(_RESET, "row remapping failed", computes=True),  # RESET_GPU
    66: Meaning(_NOTHING, "illegal access by driver"),  # IGNORE
    67: Meaning(_NOTHING, "illegal access by driver"),  # IGNORE
    68: Meaning(_APP, "video decoder exception"),  # RESTART_APP
    69: Meaning(_APP, "graphics engine class error"),  # RESTART_APP
    74: Meaning(_RESET, "NVLink error", computes=True),  # WORKFLOW_NVLINK_ERR: reset, then look at the link
    79: Meaning(Verdict.REBOOT, "GPU has fallen off the bus"),  # RESTART_BM
    80: Meaning(_APP, "corrupted data sent to GPU"),  # RESTART_APP
    92: Meaning(_NOTHING, "high single-bit ECC error rate"),  # IGNORE
    93: Meaning(_NOTHING, "InfoROM wear limit exceeded"),  # IGNORE
    94: Meaning(_RESET, "contained memory error", computes=True),  # RESTART_APP; its page stays out of use until a reset
    95: Meaning(_RESET, "uncontained memory error"),  # RESET_GPU
    109: Meaning(_RESET, "context switch timeout"),  # RESET_GPU
    110: Meaning(_RESET, "security fault"),  # RESET_GPU
    119: Meaning(_RESET, "GSP RPC timeout"),  # RESET_GPU
    120: Meaning(_RESET, "GSP error"),  # RESET_GPU
    121: Meaning(_NOTHING, "C2C error"),  # IGNORE
    136: Meaning(_RESET, "link training failed", computes=True),  # RESET_GPU
    137: Meaning(_NOTHING, "NVLink privilege error"),  # IGNORE
    140: Meaning(_RESET, "unrecovered ECC error"),  # RESET_GPU
    141: Meaning(_NOTHING, "CUDA fast path error"),  # IGNORE
    143: Meaning(_RESET, "GPU initialization error"),  # RESET_GPU
    151: Meaning(Verdict.REBOOT, "key rotation error"),  # RESTART_VM
    154: Meaning(_NOTHING, "GPU recovery action changed"),  # the recovery action itself is read: `_RECOVERY`
    155: Meaning(_RESET, "NVLink software defined error", computes=True),  # RESET_GPU
    156: Meaning(_RESET, "resource retirement", computes=True),  # RESET_GPU
    158: Meaning(_RESET, "GPU fatal timeout"),  # RESET_GPU
}  # fmt: skip
"""One that is not here is reported and changes nothing: 144 to 150 (NVLink 5) depend on a register that events do not carry."""

_RECOVERY = {
    "reset": Meaning(_RESET, "the driver asks for a reset of this GPU"),
    "drain_and_reset": Meaning(_RESET, "the driver asks to drain and reset this GPU", computes=True),
    "drain_p2p": Meaning(_RESET, "the driver asks to drain peer-to-peer traffic of this GPU", computes=True),
    "bus_reset": Meaning(_RESET, "the driver asks for a bus reset of this GPU"),
    "reboot": Meaning(Verdict.REBOOT, "the driver asks for a restart of the host"),
}
"""NVML's GPU recovery action (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, driver 570 and later), in words."""
_LOST = Meaning(Verdict.REBOOT, "the GPU is lost: it answers no query")
_REMAP_FAILED = Meaning(
    Verdict.INSPECT,
    "row remapping has failed: no spare rows are left (NVIDIA: replace the GPU)",
    computes=True,
)
_ECC = Meaning(_RESET, "uncorrectable ECC errors", computes=True)


@dataclass(frozen=True)
class Xid:
    """One Xid event. `seq` counts a GPU's events, so that none is missed or taken twice."""

    seq: int
    number: int


@dataclass(frozen=True)
class Health:
    """What one look tells of a GPU; None: the driver does not say."""

    lost: bool = False
    ecc_uncorrected: int | None = None
    """Uncorrectable ECC errors since the driver was loaded."""
    remap_failed: bool | None = None
    remap_pending: bool | None = None
    recovery: str | None = None
    """A key of `_RECOVERY`, or `none`."""
    xids: tuple[Xid, ...] = ()
    """The latest, oldest first; each look may show them again."""


@dataclass(frozen=True)
class Fault:
    """One thing that has gone wrong since the look before."""

    meaning: Meaning
    reason: str
    """For an operator, in one line."""
    lasting: str | None = None
    """The name of a condition that lasts, as `release` remembers what it has accepted; None: an event."""


def xid_fault(number: int) -> Fault:
    """What one Xid means."""
    known = XIDS.get(number, Meaning(Verdict.IGNORE, "not in the table of this version"))
    return Fault(known, f"Xid {number} ({known.name})")


def lasting_faults(health: Health) -> dict[str, Fault]:
    """Conditions that last, by name."""
    found: dict[str, Fault] = {}
    if health.lost:
        found["lost"] = Fault(_LOST, _LOST.name, "lost")
    if health.remap_failed:
        found["remap_failed"] = Fault(_REMAP_FAILED, _REMAP_FAILED.name, "remap_failed")
    asked = _RECOVERY.get(health.recovery or "")
    if asked is not None:
        key = f"recovery:{health.recovery}"
        found[key] = Fault(asked, asked.name, key)
    return found


def faults(before: Health | None, now: Health) -> list[Fault]:
    """What is new since `before`; None: nobody has looked yet, so that counts begin here and only what lasts is told."""
    lasted = lasting_faults(before) if before is not None else {}
    found = [fault for key, fault in lasting_faults(now).items() if key not in lasted]
    if before is None:
        return found
    known = max((xid.seq for xid in before.xids), default=0)
    found += [xid_fault(xid.number) for xid in now.xids if xid.seq > known]
    grown = (now.ecc_uncorrected or 0) - (before.ecc_uncorrected or 0)
    if now.ecc_uncorrected is not None and before.ecc_uncorrected is not None and grown > 0:
        found.append(
            Fault(_ECC, f"{_ECC.name}: {grown} more, {now.ecc_uncorrected} since the driver was loaded")
        )
    return found


def worst(found: list[Fault]) -> Fault | None:
    """The fault that decides: the one that asks for most, and of equals the one that leaves least of the GPU."""
    order = list(Verdict)
    return max(
        found,
        key=lambda fault: (order.index(fault.meaning.verdict), not fault.meaning.computes),
        default=None,
    )


def merged(before: Health | None, now: Health) -> Health:
    """The look to compare the next one with: what a lost GPU does not tell is as it was."""
    if before is None:
        return now
    return Health(
        now.lost,
        before.ecc_uncorrected if now.ecc_uncorrected is None else now.ecc_uncorrected,
        before.remap_failed if now.remap_failed is None else now.remap_failed,
        before.remap_pending if now.remap_pending is None else now.remap_pending,
        before.recovery if now.recovery is None else now.recovery,
        now.xids or before.xids,
    )
