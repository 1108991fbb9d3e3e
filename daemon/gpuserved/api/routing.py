"""The routing table: what the supervisor tells a router, by socket and in `routing.json`."""

from __future__ import annotations

import msgspec

TABLE_VERSION = 1


class CacheMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine says how its prefix cache does: a path, and names in its Prometheus text."""

    path: str
    hits: str
    queries: str
    """Counters in tokens."""
    config: str
    """A metric whose labels say how many tokens it holds."""


class ReplicaRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One replica a model's requests may go to."""

    id: str
    generation: int
    address: str
    """`unix:PATH` or `tcp:HOST:PORT`."""
    admit: bool
    """False: no new request; those in flight go on."""
    shim: str | None = None
    """The shim's socket: the router keeps a connection there, learns of the death at once, and is the replica's keeper."""
    upstream_model: str | None = None
    """Set where the engine knows the model by another name than clients do."""
    health_path: str = "/health"
    weight: float = 1.0
    """Its share against other replicas of the model, above 0."""
    slow_start_s: float = 0.0
    """How long after it has come it gets less than its share."""
    cache_metrics: CacheMetrics | None = None


class ModelRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One served name."""

    name: str
    profile: str
    policy: str = "least_inflight"
    queue: int = 512
    queue_timeout_s: float = 600.0
    session_header: str = "x-session-id"
    """Policy `session`: the header that names a session, in small letters."""
    load_factor: float = 1.25
    """Policy `session`: a replica takes at most this many times the mean."""
    replicas: list[ReplicaRoute] = []


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A hashed key; the key itself is nowhere."""

    name: str
    sha256: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files."""

    cert: str
    """The certificate and those between it and its root."""
    key: str


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a router needs; it can work from the file alone."""

    version: int = TABLE_VERSION
    generation: int = 0
    models: list[ModelRoute] = []
    keys: list[ApiKey] = []
    trusted_proxies: list[str] = []
    """Networks whose X-Forwarded-For counts."""
    tls: Tls | None = None
    body_max_bytes: int = 64 * 1024 * 1024
    max_connections: int = 16384


class RouteStats(msgspec.Struct, frozen=True, kw_only=True):
    """The router's own view of one replica."""

    id: str
    generation: int
    in_flight: int
    rotation: str
    """in / probation / ejected / out (not admitted)."""
    requests_total: int
    failures_total: int


class KeyStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one API key has used since the router's start."""

    name: str
    requests_total: int
    limited_total: int
    """429 for its own limits."""
    prompt_tokens_total: int
    completion_tokens_total: int


class RouterStats(msgspec.Struct, frozen=True, kw_only=True):
    """One router's figures."""

    pid: int
    table_generation: int
    in_flight: int
    queued: int
    requests_total: int
    replayed_total: int = 0
    cut_total: int = 0
    """Streams that ended with an error event."""
    rejected_total: int = 0
    """429 and 503."""
    connections: int = 0
    queued_by_model: dict[str, int] = {}
    replicas: list[RouteStats] = []
    keys: list[KeyStats] = []
    version: str | None = None
    """Of the router's code; None: from before routers said so."""
    draining: bool = False
    """It takes no more connections and ends after its last one."""
