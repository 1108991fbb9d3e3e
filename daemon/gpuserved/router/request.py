"""A whole request as it came, with what is settled about it once; and all those being served."""

from __future__ import annotations

import secrets
from typing import Protocol

import msgspec

from gpuserved.core.routes import Match
from gpuserved.router.http.body import Body
from gpuserved.router.http.head import RequestHead, valid_request_id
from gpuserved.router.tenants import Account

_LONGEST_DEADLINE_S = 7 * 24 * 3600.0


class Request(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One request. Times are the loop's."""

    id: bytes
    head: RequestHead
    body: Body
    match: Match
    account: Account | None
    """Whose API key it carries."""
    client: str
    """The address it comes from, as far as trusted proxies say."""
    forwarded_for: bytes
    """X-Forwarded-For as a replica gets it."""
    arrived_at: float
    deadline: float | None
    """When the client gives up; None: it did not say."""

    @property
    def tenant(self) -> str:
        """Whose it is, in the queue."""
        return self.client if self.account is None else self.account.tenant


def deadline_of(head: RequestHead, now: float) -> float | None:
    """Loop time at which the client gives up, from X-Request-Timeout in seconds; None: it did not say."""
    text = head.get(b"x-request-timeout")
    try:
        seconds = float(text) if text else 0.0
    except ValueError:
        return None
    return now + seconds if 0 < seconds < _LONGEST_DEADLINE_S else None


class Serving(Protocol):
    """What serves a request."""

    def give_up(self) -> None:
        """The router stops, and its time is over."""


class InFlight:
    """The requests being served. No two have the same id: an engine may fail on them (vllm#15041)."""

    def __init__(self) -> None:
        self._serving: dict[bytes, Serving] = {}
        self._prefix = secrets.token_hex(8).encode()
        self._minted = 0

    def __len__(self) -> int:
        return len(self._serving)

    def new_id(self, head: RequestHead) -> bytes:
        """The client's id if it is valid and not in flight already, else one of our own."""
        wanted = head.get(b"x-request-id")
        if wanted is None or not valid_request_id(wanted):
            self._minted += 1
            return b"%b%016x" % (self._prefix, self._minted)
        if wanted in self._serving:
            return wanted[:111] + b"-" + secrets.token_hex(8).encode()
        return wanted

    def begin(self, identity: bytes, serving: Serving) -> None:
        """It is being served from now on."""
        self._serving[identity] = serving

    def end(self, identity: bytes) -> None:
        """It is over."""
        self._serving.pop(identity, None)

    def give_up(self) -> None:
        """All of them end now."""
        for serving in tuple(self._serving.values()):
            serving.give_up()
