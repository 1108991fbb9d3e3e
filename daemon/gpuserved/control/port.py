"""What the control server needs of the fleet. The fleet implements it; tests bring a small fleet of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from gpuserved.api.crash import CrashCard
from gpuserved.api.inspect import EventsView, ProfilesView, ReplicaDetail
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.types import (
    ActionResult,
    ApplyRequest,
    ApplyResult,
    FleetEvent,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    RouterView,
    ScaleRequest,
    Status,
    UpgradeAccepted,
    UpgradeRequest,
)


class InspectionPort(Protocol):
    """Answers to questions that `status` is too short for. Raises as `FleetPort` does."""

    def events(self) -> EventsView:
        """What has been reported of late."""

    def detail(self, replica: str) -> ReplicaDetail:
        """One replica with command line, masked environment and past.

        :raises NotFound: no such replica.
        """

    def profiles(self) -> ProfilesView:
        """The profiles that are applied, and those in the profile folder that are not."""

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        """Apply a profile as its file has it now.

        :raises NotFound: no such profile.
        """

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        """The log of the present start, or of the one before: rotated segments, oldest first, then the live file.

        :raises NotFound: no such replica, or no such start.
        """

    def crash(self, replica: str, previous: bool) -> CrashCard:
        """The last crash of a replica, or with `previous` that of the start before the present one.

        :raises NotFound: no such replica, or no crash.
        """

    def all_logs(self, replica: str) -> list[Path]:
        """The logs of every start that is kept, oldest segment first; empty: there is none yet.

        :raises NotFound: no such replica.
        """

    def daemon_log(self) -> list[Path]:
        """The daemon's own log, oldest segment first."""


class FleetPort(Protocol):
    """The fleet as the control API sees it.

    Every method raises `api.errors.GpuserveError` for what an operator must be told; a mutation whose request carries a
    generation raises `Conflict` where the desired state, or the replica, has moved since.
    """

    @property
    def inspection(self) -> InspectionPort:
        """Closer looks."""

    async def look(self) -> None:
        """Ask the routers for figures of this instant; a moment later `status` has them. The telemetry has them once a second."""

    def status(self) -> Status:
        """The whole state now, from memory: no I/O."""

    async def apply(self, request: ApplyRequest) -> ApplyResult:
        """Add or update profiles; with `dry_run` only say what would change."""

    async def plan(self, request: PlanRequest) -> Plan:
        """Place one profile on the given inventory, or on the host's, without changing anything."""

    async def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        """One of `core.events.VERB_EVENTS` on these replicas. Returns once each has accepted it, not once it is done.

        :raises NotFound: an unknown replica or profile; then none was touched.
        :raises Conflict: no replica's state knows the verb. Where some do, the others are named in `refused`.
        """

    async def scale(self, request: ScaleRequest) -> ActionResult:
        """Change the number of replicas of a profile."""

    async def quarantine_gpus(self, request: GpusRequest) -> GpusResult:
        """Set GPUs aside: their replicas are drained, and move to others or wait.

        :raises NotFound: an unknown GPU; then none was touched.
        """

    async def release_gpus(self, request: GpusRequest) -> GpusResult:
        """Let GPUs be used again; what waited for them starts.

        :raises Refused: one of them is lost.
        """

    async def reload(self) -> ApplyResult:
        """Read the daemon's file, the keys and the profiles again."""

    async def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        """Begin to hand over to the gpuserve of another interpreter; returns at once. Where that one does not come up, this daemon
        goes on, and its status says why.

        :raises Refused: it does not run, or cannot work with this configuration or state; nothing has changed.
        """

    async def replace_routers(self) -> RouterView:
        """Another generation of routers takes the socket; those from before end after their last request. Returns once they serve.

        :raises Internal: they do not; those from before go on.
        """

    async def shutdown(self, *, drain: bool, forget: bool) -> None:
        """Begin to stop everything and the daemon; returns at once. The control socket goes when all is gone.

        :param forget: the next daemon starts empty; else with the profiles of this one.
        """

    def subscribe(self) -> AbstractContextManager[AsyncIterator[FleetEvent]]:
        """A new reader of events: a snapshot first, then deltas."""
