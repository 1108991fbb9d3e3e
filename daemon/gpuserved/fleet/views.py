"""What `status` shows, made from memory."""

from __future__ import annotations

from collections.abc import Iterable

from gpuserved.api.routing import ModelRoute, ReplicaRoute, RouterStats, RouteStats
from gpuserved.api.types import ReplicaView, RouterView
from gpuserved.core.state import State
from gpuserved.supervisor.owner import Owner

ROUTED = frozenset({State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING, State.STOPPING})


def replica_view(owner: Owner, stats: RouterStats | None) -> ReplicaView:
    """One replica now."""
    r, process, figures = owner.r, owner.process, owner.watch.figures
    route = _route(stats, owner)
    return ReplicaView(
        id=owner.id,
        profile=owner.assignment.profile.name,
        model=owner.assignment.profile.served_name,
        engine=owner.assignment.profile.engine.value,
        state=r.state.value,
        rotation=_rotation(owner, route, stats),
        reason=r.reason or None,
        pid=process.pid if process else None,
        shim_pid=process.shim_pid if process else None,
        generation=r.generation,
        gpus=list(owner.assignment.gpu_indexes),
        in_flight=route.in_flight if route else (0 if stats is not None else None),
        running=_whole(figures.running),
        waiting=_whole(figures.waiting),
        kv_cache_pct=figures.kv_cache_pct,
        restarts=r.history.restarts,
        started_at=process.started_at if process else None,
        phase=owner.watch.phase if r.state is State.STARTING else None,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _route(stats: RouterStats | None, owner: Owner) -> RouteStats | None:
    if stats is None:
        return None
    same = (
        route for route in stats.replicas if route.id == owner.id and route.generation == owner.r.generation
    )
    return next(same, None)


def _rotation(owner: Owner, route: RouteStats | None, stats: RouterStats | None) -> str | None:
    if not owner.admit:
        return "out"
    if route is not None:
        return route.rotation
    return None if stats is None else "in"


def router_view(pids: list[int], stats: RouterStats | None) -> RouterView:
    """The data plane now."""
    if stats is None:
        return RouterView(pids=pids)
    return RouterView(
        pids=pids, in_flight=stats.in_flight, queued=stats.queued, requests_total=stats.requests_total
    )


def model_routes(owners: Iterable[Owner]) -> list[ModelRoute]:
    """The routing table's models: every profile's, also one none of whose replicas is ready."""
    routes: dict[str, ModelRoute] = {}
    replicas: dict[str, list[ReplicaRoute]] = {}
    for owner in owners:
        profile = owner.assignment.profile
        routes.setdefault(
            profile.name,
            ModelRoute(
                name=profile.served_name,
                profile=profile.name,
                policy=profile.policy.value,
                queue=profile.limits.queue,
                queue_timeout_s=profile.limits.queue_timeout_s,
            ),
        )
        route = replica_route(owner)
        if route is not None:
            replicas.setdefault(profile.name, []).append(route)
    return [
        ModelRoute(
            name=model.name,
            profile=model.profile,
            policy=model.policy,
            queue=model.queue,
            queue_timeout_s=model.queue_timeout_s,
            replicas=replicas.get(name, []),
        )
        for name, model in routes.items()
    ]


def replica_route(owner: Owner) -> ReplicaRoute | None:
    """None: nothing runs there that could be reached."""
    if owner.process is None or owner.address is None or owner.r.state not in ROUTED:
        return None
    engine = owner.around.engine(owner.assignment.profile)
    return ReplicaRoute(
        id=owner.id,
        generation=owner.r.generation,
        address=owner.address,
        admit=owner.admit,
        shim=owner.process.socket,
        upstream_model=engine.upstream_model(owner.assignment.profile),
        health_path=engine.health_path,
    )
