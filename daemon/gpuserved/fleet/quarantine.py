"""The GPUs that are set aside: who and why, on disk, by UUID. Nothing is started on them until they are released."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from gpuserved.api.types import GpuView
from gpuserved.core.gpufault import CURES, Verdict
from gpuserved.core.placement import SIM_PREFIX, Gpu
from gpuserved.host import statefile

log = logging.getLogger(__name__)

SCHEMA = 1
FILE = "gpus.json"
OPERATOR, HELD = "operator", "held"
"""Kinds of quarantine beside a fault's verdict: an operator's wish, and memory that does not come back (it heals by itself)."""
NO_REASON = "set aside by the operator"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU that is set aside."""

    uuid: str
    index: int
    """When it was set aside; after a restart of the host another GPU may have it."""
    name: str
    kind: str
    """operator, held, or the verdict on a fault: inspect, reset, reboot."""
    reason: str
    since: float
    """Unix seconds."""
    pids: list[tuple[int, int]] = []
    """What holds it, each with its start time in clock ticks since boot (0: it was gone from /proc already)."""

    def explain(self) -> str:
        """The reason, and what to do about it."""
        if self.kind == OPERATOR:
            return self.reason
        if self.kind == HELD:
            return f"{self.reason}; released by itself once that is gone (gpuserve release {self.index} does not wait)"
        cure = CURES[Verdict(self.kind)].format(index=self.index)
        return f"{self.reason}: {cure}, then gpuserve release {self.index}"


class QuarantineFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    gpus: list[Record] = []
    accepted: dict[str, list[str]] = {}
    """GPU UUID -> lasting conditions that its release has accepted: they do not set it aside again while they last."""


class Quarantine:
    """The list, in memory and on disk. Belongs to the fleet's loop."""

    def __init__(self, path: Path | None, changed: Callable[[], None] = lambda: None) -> None:
        """:param path: None: nothing is read.
        :param changed: what there is to write (`content`) has changed.
        """
        self._path = path
        self._changed = changed
        self._of: dict[str, Record] = {}
        self._accepted: dict[str, set[str]] = {}
        self._problem: str | None = None

    @property
    def of(self) -> Mapping[str, Record]:
        """By UUID."""
        return MappingProxyType(self._of)

    @property
    def accepted(self) -> Mapping[str, Collection[str]]:
        """By UUID: lasting conditions that a release has accepted."""
        return MappingProxyType(self._accepted)

    @property
    def problem(self) -> str | None:
        """What is wrong with the file; None: all well."""
        return self._problem

    def load(self, *, touch: bool = True) -> None:
        """Read the file. Of a damaged one the copy before it is taken, and `problem` says so.

        :param touch: rename a damaged one: the daemon's affair.
        """
        if self._path is None:
            return
        found = statefile.load(self._path, version=SCHEMA, touch=touch)
        self._problem = found.problem
        try:
            saved = msgspec.convert(found.data or {}, QuarantineFile)
        except msgspec.ValidationError as error:
            self._problem = f"{self._path} makes no sense ({error}); no GPU is set aside"
            return
        self._of = {record.uuid: record for record in saved.gpus}
        self._accepted = {uuid: set(names) for uuid, names in saved.accepted.items()}

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._of

    def blocked(self) -> dict[str, str]:
        """As the planner takes it: UUID -> why nothing may be placed there."""
        return {uuid: f"quarantined: {record.reason}" for uuid, record in self._of.items()}

    def among(self, uuids: Collection[str]) -> list[Record]:
        """Those of these GPUs that are set aside."""
        return [self._of[uuid] for uuid in uuids if uuid in self._of]

    def set_aside(self, gpu: GpuView, kind: str, reason: str, pids: Sequence[tuple[int, int]] = ()) -> None:
        """Set a GPU aside, or say anew why it is."""
        before = self._of.get(gpu.uuid)
        since = before.since if before is not None else time.time()
        self._of[gpu.uuid] = Record(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            kind=kind,
            reason=reason,
            since=since,
            pids=list(pids),
        )
        log.warning("GPU %d (%s) is set aside (%s): %s", gpu.index, gpu.uuid, kind, reason)
        self._save()

    def release(self, uuid: str, accepting: Collection[str] = ()) -> None:
        """Let it be used again.

        :param accepting: lasting conditions that it has, and is used in spite of.
        """
        self._of.pop(uuid, None)
        if accepting:
            self._accepted[uuid] = set(accepting)
        else:
            self._accepted.pop(uuid, None)
        log.warning("GPU %s is released", uuid)
        self._save()

    def still_accepted(self, uuid: str, lasting: Collection[str]) -> set[str]:
        """What a release has accepted and still lasts. What is over counts anew when it comes back."""
        known = self._accepted.get(uuid, set())
        if known - set(lasting):
            self._accepted[uuid] = known & set(lasting)
            self._save()
        return self._accepted.get(uuid, set())

    def shown(self, views: Sequence[GpuView]) -> list[GpuView]:
        """The GPUs as `status` shows them: a lost one stays LOST, whatever else is known of it. One that the driver no longer shows
        is lost, too.
        """
        present = {view.uuid for view in views}
        gone = [record for record in self._of.values() if record.uuid not in present and views]
        return [_shown(view, self._of.get(view.uuid)) for view in views] + [
            GpuView(
                index=record.index, uuid=record.uuid, name=record.name, state="LOST", reason=record.explain(),
                quarantined_since=record.since,
            )
            for record in sorted(gone, key=lambda record: record.index)
            if not (record.kind == OPERATOR and record.uuid.startswith(SIM_PREFIX))
        ]  # fmt: skip

    def set_aside_missing(self, inventory: Sequence[Gpu], held: Collection[str]) -> None:
        """GPUs that replicas had and the driver does not show: a card that did not come back with the host.

        :param inventory: what the driver shows, and what is simulated; where there is nothing of a kind, it is the driver that is missing.
        :param held: the GPU UUIDs of replicas.
        """
        present = {gpu.uuid for gpu in inventory}
        kinds = {uuid.startswith(SIM_PREFIX) for uuid in present}
        index = max((gpu.index for gpu in inventory), default=-1) + 1
        for uuid in sorted(set(held) - present - set(self._of)):
            if uuid.startswith(SIM_PREFIX) not in kinds:
                continue
            gone = GpuView(index=index, uuid=uuid, name="unknown GPU")
            self.set_aside(gone, Verdict.REBOOT.value, "the driver does not show this GPU any more")
            index += 1

    def with_missing(self, inventory: Sequence[Gpu]) -> list[Gpu]:
        """The inventory with the GPUs that are set aside and gone: replicas may still hold them, nothing is placed there.

        :param inventory: with what is simulated.
        """
        present = {gpu.uuid for gpu in inventory}
        total = max((gpu.memory_total_bytes or 0 for gpu in inventory), default=0) or None
        return list(inventory) + [
            Gpu(record.index, record.uuid, record.name, total, blocked=f"quarantined: {record.reason}")
            for record in self._of.values()
            if record.uuid not in present and present
        ]

    def content(self) -> QuarantineFile:
        """For the file."""
        return QuarantineFile(
            gpus=sorted(self._of.values(), key=lambda record: record.index),
            accepted={uuid: sorted(names) for uuid, names in self._accepted.items()},
        )

    def _save(self) -> None:
        self._problem = None  # of the file that is written anew
        self._changed()


def _shown(view: GpuView, record: Record | None) -> GpuView:
    if record is None:
        return view
    changes: Mapping[str, Any] = {"reason": record.explain(), "quarantined_since": record.since}
    if view.state == "OK":
        changes = {**changes, "state": "QUARANTINED"}
    return msgspec.structs.replace(view, **changes)
