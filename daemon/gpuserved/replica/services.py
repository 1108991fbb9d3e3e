"""What a replica's controller needs of the rest of the daemon. The fleet provides it; tests provide their own."""

from __future__ import annotations

from typing import Protocol

from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import Refused
from gpuserved.api.roots import Roots
from gpuserved.api.types import GpuView
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine
from gpuserved.host.gpulock import GpuLocks
from gpuserved.replica.start_gate import StartGate


class GpuSetAside(Refused):
    """One of the GPUs of a start is quarantined: it waits for the release."""


class Services(Protocol):
    """The fleet, as the controller of one replica sees it."""

    @property
    def roots(self) -> Roots:
        """Where the daemon's files are."""

    @property
    def gate(self) -> StartGate:
        """Who may start now."""

    @property
    def orphan_ttl_s(self) -> float | None:
        """How long a replica outlives the daemon; None: for ever."""

    @property
    def hf_token(self) -> str | None:
        """The hub's token, for engines that fetch their model."""

    @property
    def gpu_locks(self) -> GpuLocks | None:
        """Host-wide leases; None where GPUs are on paper."""

    def engine(self, profile: Profile) -> Engine:
        """The profile's adapter."""

    def last_of_model(self, replica: str) -> bool:
        """True where no other replica of its model serves or may come back by itself."""

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests the routers have there, once they know of its present place in rotation; None: unknown yet."""

    async def gpus_free(self, replica: str, gpu_uuids: tuple[str, ...]) -> None:
        """Wait until replicas that are leaving these GPUs have left, and the memory of earlier starts is back.

        :raises GpuSetAside: one is quarantined, or becomes so because its memory does not come back.
        """

    def gpu_views(self, gpu_uuids: tuple[str, ...]) -> list[GpuView]:
        """These GPUs as of the last sample."""

    def crashed(self, card: CrashCard) -> None:
        """A start ended and was not asked to: tell whoever wants to know. Never blocks."""

    def changed(self, replica: str, previous_state: str) -> None:
        """Something `status` shows has changed: save, publish, tell the routers."""

    async def record_intent(self) -> None:
        """Write the state to disk: a start follows once this returns.

        :raises OSError: a start that cannot be recorded must not happen.
        """
