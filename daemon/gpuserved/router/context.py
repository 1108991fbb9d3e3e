"""What every request of one router shares."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Protocol

from gpuserved.core.blocked import Blocked
from gpuserved.core.replay import RetryBudget
from gpuserved.router.accesslog import AccessLog
from gpuserved.router.accounts import Accounts
from gpuserved.router.http.head import RequestHead, valid_request_id
from gpuserved.router.metrics import Metrics
from gpuserved.router.prompts import Prompts
from gpuserved.router.proxies import TrustedProxies
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Fleet, Model

RESPONSES_MAX = 16384
"""Response ids that are remembered; the oldest are forgotten."""


class ResponseMap:
    """Which replica made which stored response."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, tuple[str, Replica]] = OrderedDict()

    def learn(self, identity: str, model: Model, replica: Replica) -> None:
        """`replica` made it."""
        self._made[identity] = (model.name, replica)
        self._made.move_to_end(identity)
        while len(self._made) > RESPONSES_MAX:
            self._made.popitem(last=False)

    def find(self, identity: str) -> tuple[str, Replica] | None:
        """(model, replica), if it is remembered."""
        return self._made.get(identity)


class RequestIds:
    """Ids of requests in flight: an engine may fail on two requests with one id (vllm#15041)."""

    def __init__(self) -> None:
        self._live: set[bytes] = set()
        self._prefix = secrets.token_hex(8).encode()
        self._minted = 0

    def mint(self, head: RequestHead) -> bytes:
        """The client's id if it is valid and not in flight already, else one of our own."""
        wanted = head.get(b"x-request-id")
        if wanted is None or not valid_request_id(wanted):
            self._minted += 1
            wanted = b"%b%016x" % (self._prefix, self._minted)
        elif wanted in self._live:
            wanted = wanted[:111] + b"-" + secrets.token_hex(8).encode()
        self._live.add(wanted)
        return wanted

    def forget(self, identity: bytes) -> None:
        """The request is over."""
        self._live.discard(identity)


class Cancellable(Protocol):
    """A request being served."""

    def cancel(self) -> object:
        """Its client left."""

    def give_up(self) -> None:
        """The router stops, and its time is over."""


class Context:
    """One router's shared state."""

    def __init__(self, fleet: Fleet, metrics: Metrics, budget: RetryBudget, prompts: Prompts) -> None:
        self.fleet = fleet
        self.metrics = metrics
        self.budget = budget
        self.blocked = Blocked()
        self.accounts = Accounts()
        self.proxies = TrustedProxies([])
        self.prompts = prompts
        self.responses = ResponseMap()
        self.request_ids = RequestIds()
        self.live: set[Cancellable] = set()
        """Requests being served."""
        self.access_log: AccessLog | None = None
        self.draining = False
        self.started_at = 0
        """Unix seconds; `created` of the models."""

    def tenant_of(self, head: RequestHead, peer: str) -> str:
        """Whose the request is: its key's, else its client's address."""
        account = self.accounts.find(head)
        return self.client_of(head, peer) if account is None else account.tenant

    def client_of(self, head: RequestHead, peer: str) -> str:
        """The address it comes from, as far as trusted proxies say."""
        return self.proxies.chain(head, peer)[0]

    def forwarded_for(self, head: RequestHead, client: bytes, peer: str) -> bytes:
        """X-Forwarded-For as a replica gets it. `client` is `peer`, quoted."""
        chain = self.proxies.chain(head, peer)
        return ", ".join(chain[:-1]).encode() + b", " + client if len(chain) > 1 else client
