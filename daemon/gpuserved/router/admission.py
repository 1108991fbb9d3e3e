"""What a whole request asks for: its model, its deadline, and the replica that should serve it, if one should."""

from __future__ import annotations

import msgspec

from gpuserved.core.policy.base import UNTIED, Ask
from gpuserved.core.routes import Kind, Match
from gpuserved.router import affinity, envelope, large
from gpuserved.router.context import Context
from gpuserved.router.envelope import Envelope
from gpuserved.router.http import errors
from gpuserved.router.http.body import Body
from gpuserved.router.http.head import RequestHead
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Model

_LONGEST_DEADLINE_S = 7 * 24 * 3600.0


class Asked(msgspec.Struct, frozen=True):
    """The outcome. `only`: no other replica than `prefer` can answer."""

    model: Model
    envelope: Envelope | None
    prefer: Replica | None = None
    only: bool = False
    ask: Ask = UNTIED


def deadline_of(head: RequestHead, now: float) -> float | None:
    """Loop time at which the client gives up, from X-Request-Timeout in seconds; None: it did not say."""
    text = head.get(b"x-request-timeout")
    try:
        seconds = float(text) if text else 0.0
    except ValueError:
        return None
    return now + seconds if 0 < seconds < _LONGEST_DEADLINE_S else None


def read(context: Context, head: RequestHead, body: Body, found: Match) -> Asked:
    """Read what is asked for.

    :raises HttpError: 400 or 404.
    """
    models = context.fleet.models
    kind = found.route.kind
    if kind is Kind.RESPONSE_ID:
        made = context.responses.find(found.id or "")
        if made is None or made[0] not in models:
            raise errors.no_response(found.id or "")
        return Asked(models[made[0]], None, made[1], only=True)
    if kind is Kind.UPGRADE:
        if not head.websocket:
            raise errors.HttpError(
                426, "This route is a WebSocket: send an upgrade.", kind="invalid_request_error", code="upgrade_required"
            )  # fmt: skip
        seen = envelope.read_query(head.query)
    elif kind is Kind.MULTIPART:
        view = body.view() if body.size else b""
        seen = envelope.read_multipart(view, head.get(b"content-type") or b"")
    else:
        seen = envelope.read_json(body.view() if body.size else b"")
    return _asked(context, head, body, kind, seen)


async def read_large(context: Context, head: RequestHead, body: Body, found: Match) -> Asked:
    """The same for a body that may be too large to be read at once.

    :raises HttpError: 400 or 404.
    """
    if found.route.kind is not Kind.JSON:
        return read(context, head, body, found)
    return _asked(context, head, body, found.route.kind, await large.read_json(body))


def _asked(context: Context, head: RequestHead, body: Body, kind: Kind, seen: Envelope) -> Asked:
    models = context.fleet.models
    model = models.get(seen.model)
    if model is None:
        raise errors.no_model(seen.model, sorted(models))
    prefer = None
    if seen.previous_response_id is not None:
        made = context.responses.find(seen.previous_response_id)
        prefer = made[1] if made is not None else None
    return Asked(model, seen, prefer, ask=affinity.ask(context, model, head, body, kind, seen.session))
