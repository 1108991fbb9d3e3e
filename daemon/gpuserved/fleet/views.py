"""The wire's values of replicas, models and routers, made of snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpuserved.api.routing import ModelRoute, ReplicaRoute, RouterStats, RouteStats
from gpuserved.api.types import LoadView, ModelView, ReplicaView, RouterView
from gpuserved.core.load import Growth, figures, merged
from gpuserved.core.profile import Profile
from gpuserved.core.state import State
from gpuserved.engines.base import Engine
from gpuserved.replica.snapshot import ReplicaSnapshot
from gpuserved.routers.routers import Routers

SEVERITIES = {State.FAILED: "error", State.UNHEALTHY: "error", State.BACKOFF: "warning"}


def replica_view(
    replica: ReplicaSnapshot, stats: RouterStats | None, since: float | None = None, *, leaving: bool = False
) -> ReplicaView:
    """One replica now.

    :param since: Unix seconds of its last change of state.
    :param leaving: the desired state has no place for it.
    """
    r, process, scrape = replica.r, replica.process, replica.figures
    route = _route(stats, replica)
    return ReplicaView(
        id=replica.id,
        profile=replica.assignment.profile.name,
        model=replica.assignment.profile.served_name,
        engine=replica.assignment.profile.engine.value,
        state=r.state.value,
        rotation=_rotation(replica, route, stats),
        reason=r.reason or None,
        pid=process.pid if process else None,
        shim_pid=process.shim_pid if process else None,
        generation=r.generation,
        gpus=list(replica.assignment.gpu_indexes),
        in_flight=route.in_flight if route else (0 if stats is not None else None),
        running=_whole(scrape.running),
        waiting=_whole(scrape.waiting),
        kv_cache_pct=scrape.kv_cache_pct,
        restarts=r.history.restarts,
        started_at=process.started_at if process else None,
        shim_version=process.shim_version if process else None,
        phase=replica.phase if r.state is State.STARTING else None,
        state_since=since,
        load=load_view(replica.load),
        outdated=replica.outdated,
        leaving=leaving,
    )


def load_view(growth: Growth) -> LoadView | None:
    """A minute's growth as figures; None before there is any."""
    found = figures(growth)
    return None if found is None else LoadView(**found)


def total_load(replicas: Iterable[ReplicaSnapshot]) -> LoadView | None:
    """Several replicas as one."""
    return load_view(merged(replica.load for replica in replicas))


def model_views(replicas: Iterable[ReplicaSnapshot], stats: RouterStats | None) -> list[ModelView]:
    """Each served name with its replicas together, in the order of their names."""
    by_name: dict[str, list[ReplicaSnapshot]] = {}
    for replica in replicas:
        by_name.setdefault(replica.assignment.profile.served_name, []).append(replica)
    return [_model_view(name, by_name[name], stats) for name in sorted(by_name)]


def _model_view(name: str, replicas: list[ReplicaSnapshot], stats: RouterStats | None) -> ModelView:
    routes = [route for route in (_route(stats, replica) for replica in replicas) if route is not None]
    return ModelView(
        name=name,
        replicas=len(replicas),
        ready=sum(replica.r.state is State.READY for replica in replicas),
        queued=None if stats is None else stats.queued_by_model.get(name, 0),
        in_flight=None if stats is None else sum(route.in_flight for route in routes),
        running=_whole(_total(replica.figures.running for replica in replicas)),
        waiting=_whole(_total(replica.figures.waiting for replica in replicas)),
        load=total_load(replicas),
    )


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def order(replica: str) -> tuple[str, int]:
    """Sorts replicas by profile and number."""
    profile, _, number = replica.rpartition("-")
    return profile, int(number) if number.isdigit() else 0


def _route(stats: RouterStats | None, replica: ReplicaSnapshot) -> RouteStats | None:
    if stats is None:
        return None
    same = (
        route
        for route in stats.replicas
        if route.id == replica.id and route.generation == replica.r.generation
    )
    return next(same, None)


def _rotation(replica: ReplicaSnapshot, route: RouteStats | None, stats: RouterStats | None) -> str | None:
    if not replica.admit:
        return "out"
    if route is not None:
        return route.rotation
    return None if stats is None else "in"


def router_view(routers: Routers) -> RouterView:
    """The data plane now."""
    seen = routers.snapshot
    stats = seen.stats
    return RouterView(
        pids=list(seen.pids),
        in_flight=None if stats is None else stats.in_flight,
        queued=None if stats is None else stats.queued,
        requests_total=None if stats is None else stats.requests_total,
        keys=[] if stats is None else stats.keys,
        processes=list(seen.processes),
        trouble=seen.trouble,
    )


def model_routes(
    replicas: Iterable[ReplicaSnapshot], engine: Callable[[Profile], Engine]
) -> list[ModelRoute]:
    """The routing table's models: every name of every profile, also of one none of whose replicas is ready."""
    profiles: dict[str, Profile] = {}
    routes: dict[str, list[ReplicaRoute]] = {}
    for replica in replicas:
        profile = replica.assignment.profile
        profiles.setdefault(profile.name, profile)
        route = replica_route(replica, engine)
        if route is not None:
            routes.setdefault(profile.name, []).append(route)
    return [
        ModelRoute(
            name=served,
            profile=name,
            policy=profile.policy.value,
            queue=profile.limits.queue,
            queue_timeout_s=profile.limits.queue_timeout_s,
            session_header=profile.routing.session_header,
            load_factor=profile.routing.load_factor,
            replicas=routes.get(name, []),
        )
        for name, profile in profiles.items()
        for served in profile.model_names
    ]


def replica_route(replica: ReplicaSnapshot, engine: Callable[[Profile], Engine]) -> ReplicaRoute | None:
    """None: nothing runs there that could be reached."""
    if replica.process is None or replica.address is None or not replica.r.state.has_process:
        return None
    profile = replica.assignment.profile
    adapter = engine(profile)
    return ReplicaRoute(
        id=replica.id,
        generation=replica.r.generation,
        address=replica.address,
        admit=replica.admit,
        shim=replica.process.shim_socket,
        upstream_model=adapter.upstream_model(profile),
        health_path=adapter.health_path(profile),
        weight=profile.routing.weight,
        slow_start_s=profile.routing.slow_start_s,
        cache_metrics=adapter.cache_metrics(profile),
    )
