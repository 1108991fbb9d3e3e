"""What the router answers itself."""

from __future__ import annotations

import msgspec

from gpuserved.core.balance import Rotation
from gpuserved.core.routes import Kind, Match
from gpuserved.router.context import Context
from gpuserved.router.http import errors
from gpuserved.router.http.head import Headers
from gpuserved.router.metrics import of_router, render

_JSON: Headers = [(b"content-type", b"application/json")]
_TEXT: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]


def _card(context: Context, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": context.started_at, "owned_by": "gpuserve"}


def answer(context: Context, found: Match) -> tuple[int, Headers, bytes] | None:
    """(status, headers, body); None: a replica must answer.

    :raises HttpError: 404 for a model that is not served.
    """
    kind = found.route.kind
    models = context.fleet.models
    if kind is Kind.MODELS:
        cards = [_card(context, name) for name in sorted(models)]
        return 200, _JSON, msgspec.json.encode({"object": "list", "data": cards})
    if kind is Kind.MODEL:
        name = found.id or ""
        if name not in models:
            raise errors.no_model(name, sorted(models))
        return 200, _JSON, msgspec.json.encode(_card(context, name))
    if kind is Kind.HEALTH:
        ready = any(model.usable() for model in models.values())
        in_rotation = sum(r.rotation is Rotation.IN for r in context.fleet.replicas())
        status = "ok" if ready else "no replica is ready"
        body = msgspec.json.encode({"status": status, "replicas_in_rotation": in_rotation})
        return (200 if ready else 503), _JSON, body
    if kind is Kind.METRICS:
        page, counts = render(context.metrics, context.fleet, context.accounts), context.fleet.counts
        return 200, _TEXT, page if counts is None else of_router(page, counts.row)
    return None
