"""What the router answers itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from gpuserved.core.balance import Rotation
from gpuserved.core.routes import Kind, Match
from gpuserved.router.http import errors
from gpuserved.router.http.head import Headers
from gpuserved.router.metrics import Metrics, of_router, render
from gpuserved.router.registry import Registry
from gpuserved.router.tenants import Tenants

_JSON: Headers = [(b"content-type", b"application/json")]
_TEXT: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]

Answer = tuple[int, Headers, bytes]
"""Status, headers, body."""


class BuiltinRoutes:
    """The routes of `core.routes.LOCAL`."""

    def __init__(
        self,
        registry: Registry,
        tenants: Tenants,
        metrics: Metrics,
        *,
        connections: Callable[[], int],
        row: int | None,
    ) -> None:
        """:param connections: how many clients are connected.
        :param row: which of several routers this is; None: there is one.
        """
        self._registry = registry
        self._tenants = tenants
        self._metrics = metrics
        self._connections = connections
        self._row = row
        self._started_at = int(time.time())

    def answer(self, found: Match) -> Answer:
        """The answer of a local route.

        :raises HttpError: 404 for a model that is not served.
        """
        kind, models = found.route.kind, self._registry.models
        if kind is Kind.MODELS:
            cards = [self._card(name) for name in sorted(models)]
            return 200, _JSON, msgspec.json.encode({"object": "list", "data": cards})
        if kind is Kind.MODEL:
            name = found.id or ""
            if name not in models:
                raise errors.no_model(name, sorted(models))
            return 200, _JSON, msgspec.json.encode(self._card(name))
        if kind is Kind.METRICS:
            page = render(self._metrics, self._registry, self._tenants, connections=self._connections())
            return 200, _TEXT, page if self._row is None else of_router(page, self._row)
        return self._health()

    def _card(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "gpuserve"}

    def _health(self) -> Answer:
        ready = any(model.usable() for model in self._registry.models.values())
        in_rotation = sum(r.rotation is Rotation.IN for r in self._registry.replicas())
        status = "ok" if ready else "no replica is ready"
        body = msgspec.json.encode({"status": status, "replicas_in_rotation": in_rotation})
        return (200 if ready else 503), _JSON, body
