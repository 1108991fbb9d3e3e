"""Wire types of the control API. Units are in the names; a value nobody knows is null, never 0.

Requests are closed (unknown fields are refused); answers are open (a newer daemon may add fields).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpuserved.api.crash import CrashCard
from gpuserved.api.routing import KeyStats

PROTOCOL_VERSION = 1


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of answers."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of requests."""


class FailedUpgrade(Answer, frozen=True, kw_only=True):
    """Another version was to take over and did not come up; this one went on."""

    at: float
    """Unix seconds."""
    version: str
    reason: str


class RouterProcess(Answer, frozen=True, kw_only=True):
    """One router process with its shim."""

    router: int
    """Which of those that run together, from 0."""
    generation: int
    """Grows with every replacement of the routers."""
    pid: int | None = None
    shim_pid: int | None = None
    version: str | None = None
    shim_version: str | None = None
    """None: older than such notes."""
    draining: bool = False
    """It was replaced, takes no more connections, and ends after its last one."""
    in_flight: int | None = None
    connections: int | None = None


class SupervisorView(Answer, frozen=True, kw_only=True):
    """The daemon itself."""

    pid: int
    version: str
    uptime_s: float
    degraded: str | None = None
    """What does not work right now (state not saved, ...); None: all well."""
    python: str | None = None
    """Its interpreter."""
    service: bool = False
    """It runs under systemd."""
    failed_upgrade: FailedUpgrade | None = None
    """The last one, since this daemon's start; None: none has failed."""


class LoadView(Answer, frozen=True, kw_only=True):
    """What an engine, or several together, did of late. Percentiles of several are those of their merged histograms."""

    prompt_tokens_per_s: float | None = None
    """Rates are over the last 10 s, everything else is over the last 60 s."""
    generation_tokens_per_s: float | None = None
    ttft_p50_s: float | None = None
    """Time to the first token; None: nobody asked within the window, or the engine does not say."""
    ttft_p95_s: float | None = None
    itl_p50_s: float | None = None
    """Inter-token latency."""
    itl_p95_s: float | None = None
    prefix_hit_pct: float | None = None
    """Prompt tokens found in the prefix cache, of those looked up."""
    preemptions_per_min: float | None = None


class ModelView(Answer, frozen=True, kw_only=True):
    """One served name: its queue in the router, and its replicas together."""

    name: str
    replicas: int
    ready: int
    queued: int | None = None
    in_flight: int | None = None
    running: int | None = None
    waiting: int | None = None
    load: LoadView | None = None


class RouterView(Answer, frozen=True, kw_only=True):
    """The data plane. Figures are None while no router answers."""

    pids: Sequence[int] = []
    in_flight: int | None = None
    queued: int | None = None
    requests_total: int | None = None
    keys: Sequence[KeyStats] = []
    """What each API key has used since the router's start."""
    processes: Sequence[RouterProcess] = []
    """Each router by itself: those that take connections, then those that were replaced and have not ended yet."""
    trouble: str | None = None
    """Why the last replacement of the routers failed; None: it did not."""


class GpuOwner(Answer, frozen=True, kw_only=True):
    """Who holds memory on a GPU. `replica` None: not ours."""

    replica: str | None
    pid: int
    memory_bytes: int | None = None
    command: str | None = None
    """The process's name, as `ps` shows it."""
    user: str | None = None


class GpuView(Answer, frozen=True, kw_only=True):
    """One GPU."""

    index: int
    uuid: str
    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    state: str = "OK"
    """OK, LOST or QUARANTINED."""
    reason: str | None = None
    """Why it is not OK, and what to do."""
    quarantined_since: float | None = None
    """Unix seconds."""
    owners: Sequence[GpuOwner] = []
    unattributed_bytes: int | None = None
    """In use, and of no process that the driver names: its own share, or a process in another container."""
    nvlink: Sequence[int] = []
    """Indexes of the GPUs that NVLink joins it to."""
    numa_node: int | None = None


class ReplicaView(Answer, frozen=True, kw_only=True):
    """One replica."""

    id: str
    profile: str
    model: str
    engine: str
    state: str
    rotation: str | None = None
    """in / probation / ejected / out; None while no router answers."""
    reason: str | None = None
    pid: int | None = None
    shim_pid: int | None = None
    generation: int = 0
    gpus: Sequence[int] = []
    in_flight: int | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache_pct: float | None = None
    restarts: int = 0
    started_at: float | None = None
    """Unix seconds of the present process's start."""
    phase: str | None = None
    """While STARTING: what the engine is doing, from its log."""
    shim_version: str | None = None
    """Of the gpuserve that started this process's shim; None: older than such notes."""
    state_since: float | None = None
    """Unix seconds of the last change of state that this daemon saw."""
    load: LoadView | None = None
    outdated: str | None = None
    """How its environment differs by now from what it was started from, in words; None: not at all, or nobody knows."""
    leaving: bool = False
    """A smaller scale or an apply has let it go: it drains, stops, and is gone."""


class RolloutView(Answer, frozen=True, kw_only=True):
    """A rolling change of one profile: under way, or the last one until the next."""

    profile: str
    direction: str
    """forward / back"""
    outcome: str | None = None
    """done / rolled_back / stopped; None: under way."""
    current: str | None = None
    """The replica that is being replaced."""
    done: int
    total: int
    reason: str | None = None
    """What it waits for, or why it was turned back or stopped."""
    began_at: float
    """Unix seconds."""


class Status(Answer, frozen=True, kw_only=True):
    """`gpuserve status --json`, and the body of a snapshot event."""

    generation: int
    """Of the desired state; mutations may carry it."""
    version: str
    endpoint: str | None
    supervisor: SupervisorView
    router: RouterView
    gpus: Sequence[GpuView] = []
    replicas: Sequence[ReplicaView] = []
    models: Sequence[ModelView] = []
    load: LoadView | None = None
    """Everything together."""
    rollouts: Sequence[RolloutView] = []


class VersionView(Answer, frozen=True, kw_only=True):
    """`GET /v1/version`."""

    version: str
    protocol: int
    may_operate: bool = True
    """Whether this client's user may change anything here."""


class ApplyRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Add or update profiles. `profiles` maps a name to its TOML text; `sources` to the path shown in errors.

    :param prune: remove profiles that are not named here.
    :param generation: refuse with `conflict` where the desired state has moved since.
    """

    profiles: Mapping[str, str]
    sources: Mapping[str, str] = {}
    prune: bool = False
    dry_run: bool = False
    generation: int | None = None


class ApplyProfileRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Apply one profile as its file has it now."""

    generation: int | None = None


class Change(Answer, frozen=True, kw_only=True):
    """One thing `apply` does."""

    replica: str
    action: str
    """start / stop / replace / resume (one that was on its way out) / keep"""
    why: str


class PlanWarning(Answer, frozen=True, kw_only=True):
    """Something the operator should know."""

    code: str
    message: str


class ApplyResult(Answer, frozen=True, kw_only=True):
    """What `apply` did, or with `dry_run` would do."""

    generation: int
    changes: Sequence[Change] = []
    warnings: Sequence[PlanWarning] = []


class ReplicasRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Act on these replicas (ids, or profile names for all of theirs)."""

    replicas: Sequence[str]
    generation: int | None = None
    replica_generations: dict[str, int] = {}
    """The start that each replica was seen in; one that has been replaced since answers `conflict`, and none is touched."""


class ScaleRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change the number of replicas of a profile."""

    profile: str
    replicas: int
    generation: int | None = None


class ActionResult(Answer, frozen=True, kw_only=True):
    """The replicas an action touched, with the state each is now in."""

    generation: int
    replicas: Mapping[str, str] = {}
    refused: Mapping[str, str] = {}
    """Of several: the replicas whose state did not know the request, and why."""


class FleetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `GET /v1/events`.

    `kind`: `snapshot` (status set; the first line, and again after a resync), `replica` (a state change), `telemetry`
    (status set, figures only; dropped first for a slow reader), `notice`.
    """

    seq: int
    at: float
    kind: str
    status: Status | None = None
    replica: ReplicaView | None = None
    previous_state: str | None = None
    message: str | None = None
    severity: str = "info"
    """info / warning / error."""
    crash: CrashCard | None = None
    """On the notice of a crash."""
    generation: int | None = None
    """The fleet's, as in `Status`: what is decided on this event is decided on it. None: from an older daemon."""


class GpusRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quarantine or release these GPUs (indexes or UUIDs)."""

    gpus: list[str]
    reason: str | None = None
    """Of a quarantine, for whoever looks next."""
    generation: int | None = None


class GpusResult(Answer, frozen=True, kw_only=True):
    """The GPUs as they are now, and what becomes of replicas."""

    generation: int
    gpus: Sequence[GpuView] = []
    replicas: Mapping[str, str] = {}
    """Replica -> what becomes of it, in words."""
    notes: Sequence[str] = []
    """GPUs for which nothing was to do, in words."""


class UpgradeRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/upgrade`: let the gpuserve of this interpreter take over. It is code execution, as `apply` is.

    :param python: its interpreter, an absolute path.
    :param pythonpath: its PYTHONPATH; None: without one.
    """

    python: str
    pythonpath: str | None = None


class UpgradeAccepted(Answer, frozen=True, kw_only=True):
    """It runs there and can work with this configuration and state; the hand-over begins after this answer."""

    version: str
