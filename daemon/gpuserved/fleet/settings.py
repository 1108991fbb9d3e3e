"""What an operator may change of the daemon while it runs: one value, replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuserved.api.routing import ApiKey, Tls
from gpuserved.routers.routers import DRAIN_S

MEMORY_BACK_S = 60.0
"""The driver frees a killed process's memory within seconds; what is held for longer is held by something unkillable."""


@dataclass(frozen=True)
class Settings:
    """The reloadable part of the daemon's file, with the files it names read."""

    keys: tuple[ApiKey, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For counts."""
    tls: Tls | None = None
    hf_token: str | None = field(default=None, repr=False)
    hang_timeout_s: float | None = None
    """Beats the profiles' default; None: each profile's own."""
    memory_back_s: float = MEMORY_BACK_S
    """How long a killed process may hold its GPU before the GPU is set aside."""
    webhook: str | None = field(default=None, repr=False)
    """Where crash cards are posted. The URL itself is often the secret."""
    router_drain_s: float = DRAIN_S
    """How long a router that was replaced goes on with what it has."""


class CurrentSettings:
    """The settings that count now."""

    def __init__(self, settings: Settings) -> None:
        self._value = settings

    @property
    def value(self) -> Settings:
        """Read it each time: a reload replaces it."""
        return self._value

    def replace(self, settings: Settings) -> None:
        """These count from now on. Everything that could be wrong with them has been looked at before."""
        self._value = settings
