"""Wire types for looking closely: recent events, one replica, the profiles, and pages of logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpuserved.api.crash import CrashCard
from gpuserved.api.types import FleetEvent, ReplicaView

MASK = "********"
"""Stands for a value that may be secret."""


class EventsView(msgspec.Struct, frozen=True, kw_only=True):
    """What has been reported of late, oldest first; what earlier daemons reported as well."""

    events: Sequence[FleetEvent] = []


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a replica's state."""

    at: float
    generation: int
    previous_state: str
    state: str
    reason: str | None = None


class ReplicaDetail(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/replicas/ID`. `error`: why there is no command line."""

    replica: ReplicaView
    command: Sequence[str] = []
    environment: Mapping[str, str] = {}
    """Values whose names speak of secrets are masked."""
    error: str | None = None
    log_files: Sequence[str] = []
    history: Sequence[Transition] = []
    """Changes of state as far back as they are kept, also of earlier daemons, oldest first."""
    last_lines: Sequence[str] = []
    """Of the present start's log, or of the one that failed; without control bytes and blank lines."""
    crash: CrashCard | None = None
    """Of the last start that ended by itself; None: none did, or its card is gone with its log."""


class ProfileView(msgspec.Struct, frozen=True, kw_only=True):
    """One profile: applied, or found in the profile folder and not applied (`generation_text` None)."""

    name: str
    source: str
    model: str | None = None
    served_name: str | None = None
    engine: str | None = None
    replicas: int | None = None
    """As it is applied, a scale included; None: automatic, or not applied."""
    scaled: bool = False
    applied_text: str | None = None
    """Values in `[env]` are masked."""
    source_text: str | None = None
    """What the file says now, masked alike; None: it is no file, or cannot be read."""
    differs: bool = False
    """The file has changed since it was applied."""
    error: str | None = None
    """Why the file cannot be applied."""


class ProfilesView(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/profiles`."""

    generation: int
    profiles: Sequence[ProfileView] = []


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Whole lines of one log, oldest first. `before` continues towards the past, None: there is no more of it."""

    lines: Sequence[str]
    before: str | None = None
    after: str | None = None
    """Where what is written later begins."""


class LogBatch(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `GET /v1/logs/follow`: what one source has written since the last."""

    source: str
    """A replica's id; empty: the daemon."""
    at: float
    lines: Sequence[str] = []
    dropped: int = 0
    """Lines that were written and are not here, because more came than a screen can show. They are in the file."""
    before: str | None = None
    """With the first batch of a source: the cursor for the page before it."""
    after: str | None = None
    """Where this batch ends; a stream that was cut goes on from there."""
