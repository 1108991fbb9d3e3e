"""What of a request ties it to a replica: the name of its session, the beginning of its prompt, or a response it goes on from. A body is
read for it only where the model's policy wants to know.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from gpuserved.core.policy.base import UNTIED, Ask, Ties
from gpuserved.core.policy.prefix_key import BODY_MAX_BYTES, prefix_key
from gpuserved.core.policy.session import session_key
from gpuserved.core.routes import Kind
from gpuserved.router.http.body import MEMORY_MAX_BYTES
from gpuserved.router.model import Model
from gpuserved.router.prompts import Prompts
from gpuserved.router.replica import Replica
from gpuserved.router.request import Request

RESPONSES_MAX = 16384
"""Response ids that are remembered; the oldest are forgotten."""
_NAME_MAX_CHARS = 1024


class _Names(msgspec.Struct):
    """Fields of a body that name a session, the narrower one first."""

    session_id: Any = None
    prompt_cache_key: Any = None
    user: Any = None


_DECODER = msgspec.json.Decoder(_Names)


class Affinity:
    """All that ties the requests of one router."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._made: OrderedDict[str, tuple[str, Replica]] = OrderedDict()

    def learn(self, response_id: str, model: Model, replica: Replica) -> None:
        """`replica` made this stored response."""
        self._made[response_id] = (model.name, replica)
        self._made.move_to_end(response_id)
        while len(self._made) > RESPONSES_MAX:
            self._made.popitem(last=False)

    def maker(self, response_id: str) -> tuple[str, Replica] | None:
        """(model, replica) of a stored response, if it is remembered."""
        return self._made.get(response_id)

    def ask(self, model: Model, request: Request, session: str | None) -> Ask:
        """What `model`'s policy wants to know of this request.

        :param session: the name of the session that a large body holds: it is not parsed again.
        """
        ties = model.ties
        if ties is Ties.SESSION:
            name = _session(model, request, session)
            return UNTIED if name is None else Ask(session=session_key(name))
        if ties is Ties.PREFIX:
            self._prompts.hear(model.loop.time())
            body = request.body
            if model.size > 1 and request.match.route.kind is Kind.JSON and 0 < body.size <= BODY_MAX_BYTES:
                return Ask(prefix=prefix_key(body.view()[:]))
        return UNTIED


def _session(model: Model, request: Request, known: str | None) -> str | None:
    value = request.head.get(model.session_header)
    if value:
        return value.decode("latin-1")
    body = request.body
    if body.size > MEMORY_MAX_BYTES:
        return None if known is None else known[:_NAME_MAX_CHARS]
    if request.match.route.kind is not Kind.JSON or not body.size:
        return None
    try:
        names = _DECODER.decode(body.view())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    for name in (names.session_id, names.prompt_cache_key, names.user):
        if isinstance(name, str) and name:
            return name[:_NAME_MAX_CHARS]
    return None
