"""Who is let in, and what is asked for: first by the head alone, then by the whole request."""

from __future__ import annotations

import msgspec

from gpuserved.core import routes
from gpuserved.core.policy.base import UNTIED, Ask
from gpuserved.core.replay import RetryBudget
from gpuserved.core.routes import LOCAL, Kind, Match
from gpuserved.router import params
from gpuserved.router.affinity import Affinity
from gpuserved.router.http import errors
from gpuserved.router.http.head import RequestHead
from gpuserved.router.model import Model
from gpuserved.router.params import LARGE_BYTES, Params
from gpuserved.router.poison import Poison
from gpuserved.router.registry import Registry
from gpuserved.router.replica import Replica
from gpuserved.router.request import Request
from gpuserved.router.tenants import Tenants


class Asked(msgspec.Struct, frozen=True):
    """The decision. `only`: no other replica than `prefer` can answer."""

    model: Model
    params: Params | None
    prefer: Replica | None = None
    only: bool = False
    ask: Ask = UNTIED


class Admission:
    """Decides; changes nothing but what it counts."""

    def __init__(
        self, registry: Registry, tenants: Tenants, affinity: Affinity, poison: Poison, budget: RetryBudget
    ) -> None:
        self._registry = registry
        self._tenants = tenants
        self._affinity = affinity
        self._poison = poison
        self._budget = budget

    @property
    def body_max_bytes(self) -> int:
        """Longest body."""
        return self._registry.table.body_max_bytes

    def screen(self, head: RequestHead, now: float) -> Match:
        """Key, route, length and the key's limits, from the head alone.

        :raises HttpError: 401, 404, 413 or 429.
        """
        found = routes.match(head.method, head.path)
        account = self._tenants.find(head)
        if not (found is not None and found.route.open) and self._tenants.keyed and account is None:
            raise errors.unauthorized()
        if found is None:
            raise errors.no_route("GET" if head.method == "HEAD" else head.method, head.path)
        if (head.content_length or 0) > self.body_max_bytes:
            raise errors.too_large(self.body_max_bytes)
        if account is not None and found.route.kind not in LOCAL:
            account.admit(now)
        return found

    def read(self, request: Request) -> Asked | None:
        """What a request asks for; None: its body is too large to be read at once, which is for `read_large`.

        :raises HttpError: 400, 404, or 502 for one that has killed too many replicas.
        """
        if request.body.size > LARGE_BYTES:
            return None
        asked = self._read(request)
        self._count(request, request.arrived_at)
        return asked

    async def read_large(self, request: Request) -> Asked:
        """As `read`, of a body of any size.

        :raises HttpError: as `read`.
        """
        if request.match.route.kind is Kind.JSON:
            asked = self._asked(request, await params.read_large_json(request.body))
        else:
            asked = self._read(request)
        self._count(request, asked.model.loop.time())
        return asked

    def read_upgrade(self, request: Request) -> Asked:
        """What a WebSocket is wanted for.

        :raises HttpError: 400, 404 or 426.
        """
        if not request.head.websocket or request.head.method != "GET":
            raise errors.no_upgrade()
        return self._asked(request, params.read_query(request.head.query))

    def _read(self, request: Request) -> Asked:
        head, body, kind = request.head, request.body, request.match.route.kind
        if kind is Kind.RESPONSE_ID:
            return self._by_response(request.match.id or "")
        view = body.view() if body.size else b""
        if kind is Kind.MULTIPART:
            return self._asked(request, params.read_multipart(view, head.get(b"content-type") or b""))
        return self._asked(request, params.read_json(view))

    def _by_response(self, response_id: str) -> Asked:
        made = self._affinity.maker(response_id)
        model = None if made is None else self._registry.model(made[0])
        if made is None or model is None:
            raise errors.no_response(response_id)
        return Asked(model, None, made[1], only=True)

    def _asked(self, request: Request, seen: Params) -> Asked:
        model = self._registry.model(seen.model)
        if model is None:
            raise errors.no_model(seen.model, sorted(self._registry.models))
        prefer = None
        if seen.previous_response_id is not None:
            made = self._affinity.maker(seen.previous_response_id)
            prefer = made[1] if made is not None else None
        return Asked(model, seen, prefer, ask=self._affinity.ask(model, request, seen.session))

    def _count(self, request: Request, now: float) -> None:
        """:raises HttpError: 502: it is known to kill replicas."""
        self._poison.check(request.head.path, request.body, now)
        self._budget.deposit(now)
