"""What of a request ties it to a replica: the name of its session, or the beginning of its prompt. Read only where the model's policy
wants to know.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gpuserved.core.policy.base import UNTIED, Ask, Ties
from gpuserved.core.policy.prefix_key import BODY_MAX_BYTES, prefix_key
from gpuserved.core.policy.session import session_key
from gpuserved.core.routes import Kind
from gpuserved.router.context import Context
from gpuserved.router.http.body import MEMORY_MAX_BYTES, Body
from gpuserved.router.http.head import RequestHead
from gpuserved.router.tables import Model

_NAME_MAX_CHARS = 1024


class _Names(msgspec.Struct):
    """Fields of a body that name a session, the narrower one first."""

    session_id: Any = None
    prompt_cache_key: Any = None
    user: Any = None


_DECODER = msgspec.json.Decoder(_Names)


def ask(
    context: Context, model: Model, head: RequestHead, body: Body, kind: Kind, known: str | None = None
) -> Ask:
    """What `model`'s policy wants to know of this request.

    :param known: the name of the session that a large body holds: it is not parsed again.
    """
    ties = model.policy.ties
    if ties is Ties.SESSION:
        name = _session(model, head, body, kind, known)
        return UNTIED if name is None else Ask(session=session_key(name))
    if ties is Ties.PREFIX:
        context.prompts.hear(asyncio.get_running_loop().time())
    if len(model.entries) < 2:
        return UNTIED
    if ties is Ties.PREFIX and kind is Kind.JSON and 0 < body.size <= BODY_MAX_BYTES:
        return Ask(prefix=prefix_key(body.view()[:]))
    return UNTIED


def _session(model: Model, head: RequestHead, body: Body, kind: Kind, known: str | None) -> str | None:
    value = head.get(model.session_header)
    if value:
        return value.decode("latin-1")
    if body.size > MEMORY_MAX_BYTES:
        return None if known is None else known[:_NAME_MAX_CHARS]
    if kind is not Kind.JSON or not body.size:
        return None
    try:
        names = _DECODER.decode(body.view())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    for name in (names.session_id, names.prompt_cache_key, names.user):
        if isinstance(name, str) and name:
            return name[:_NAME_MAX_CHARS]
    return None
