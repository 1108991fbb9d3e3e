"""Whose a request is: its API key's, or its client's address where proxies that are trusted pass it on. A key itself is nowhere; its
hash is.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Iterator

from gpuserved.api.routing import ApiKey, KeyStats
from gpuserved.core.limits import DAY_S, MINUTE_S, Bucket
from gpuserved.router.http import errors
from gpuserved.router.http.head import RequestHead

_WORTH_WAITING_S = 60.0
"""The SDKs wait no longer than this for a Retry-After."""
_HOPS_MAX = 32
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Account:
    """One key's. Limits hold for each router process, and start anew with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tenant = f"key {name}"
        """Its name in the queue, where it cannot be an address."""
        self.requests = 0
        self.limited = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}

    def set_limits(self, key: ApiKey, now: float) -> None:
        """Take the limits of the keys file."""
        _limit(self._requests, "requests per minute", key.requests_per_minute, MINUTE_S, now)
        _limit(self._tokens, "tokens per minute", key.tokens_per_minute, MINUTE_S, now)
        _limit(self._tokens, "tokens per day", key.tokens_per_day, DAY_S, now)

    def admit(self, now: float) -> None:
        """One more request.

        :raises HttpError: 429 where a limit is used up.
        """
        waits = [(b.wait_s(now), what) for what, b in (*self._requests.items(), *self._tokens.items())]
        longest, what = max(waits, default=(0.0, ""))
        if longest > 0:
            self.limited += 1
            raise errors.rate_limited(self.name, what, math.ceil(longest), final=longest > _WORTH_WAITING_S)
        self.requests += 1
        for bucket in self._requests.values():
            bucket.take(1, now)

    def charge(self, prompt_tokens: int, completion_tokens: int, now: float) -> None:
        """What an answer cost."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        for bucket in self._tokens.values():
            bucket.take(prompt_tokens + completion_tokens, now)

    def stats(self) -> KeyStats:
        """The wire form."""
        return KeyStats(
            name=self.name, requests_total=self.requests, limited_total=self.limited,
            prompt_tokens_total=self.prompt_tokens, completion_tokens_total=self.completion_tokens,
        )  # fmt: skip


def _limit(buckets: dict[str, Bucket], what: str, limit: int | None, window_s: float, now: float) -> None:
    known = buckets.get(what)
    if limit is None:
        buckets.pop(what, None)
    elif known is None:
        buckets[what] = Bucket(limit, window_s, now)
    else:
        known.resize(limit, now)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:  # a zone may hold anything, and means nothing on another machine
        return None
    try:
        found = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


class TrustedProxies:
    """X-Forwarded-For counts from these networks, and from nobody else."""

    def __init__(self, networks: list[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each, strict=False) for each in networks]

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(
            address.version == each.version and address in each for each in self._networks
        )

    def chain(self, head: RequestHead, peer: str) -> list[str]:
        """From the client to `peer`: each was named by the next one, which is trusted. The first is the nearest that nobody
        need be believed for (the rightmost untrusted one), so what a client writes itself never counts.
        """
        chain = [peer]
        if not self._networks or not self._trusts(peer):
            return chain
        named = [
            hop.strip()
            for value in head.all(b"x-forwarded-for")
            for hop in value.decode("latin-1").split(",")
        ]
        for hop in reversed(named[-_HOPS_MAX:]):
            address = _address(hop)
            if address is None:
                break
            chain.insert(0, str(address))
            if not self._trusts(hop):
                break
        return chain


class Tenants:
    """The keys and proxies of the present table. What a key has used outlives a reload of the file."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Account] = {}
        self._by_name: dict[str, Account] = {}
        self._proxies = TrustedProxies([])

    def update(self, keys: list[ApiKey], trusted_proxies: list[str], now: float) -> None:
        """These are the keys and the networks of proxies from now on."""
        self._proxies = TrustedProxies(trusted_proxies)
        known, self._by_name, self._by_digest = self._by_name, {}, {}
        for key in keys:
            account = known.get(key.name) or Account(key.name)
            account.set_limits(key, now)
            self._by_name[key.name] = account
            self._by_digest[key.sha256.lower()] = account

    @property
    def keyed(self) -> bool:
        """Are keys set at all?"""
        return bool(self._by_name)

    def accounts(self) -> Iterator[Account]:
        """One of each key."""
        return iter(self._by_name.values())

    def origin(self, head: RequestHead, peer: str, quoted_peer: bytes) -> tuple[str, bytes]:
        """(the address a request comes from, as far as trusted proxies say; X-Forwarded-For as a replica gets it).

        :param quoted_peer: `peer` as it may stand in a header.
        """
        chain = self._proxies.chain(head, peer)
        if len(chain) == 1:
            return peer, quoted_peer
        return chain[0], ", ".join(chain[:-1]).encode() + b", " + quoted_peer

    def find(self, head: RequestHead) -> Account | None:
        """Whose key the request carries; None: it carries none, or a wrong one. What is looked up is a hash, so that the time
        this takes says nothing of the keys.
        """
        if not self._by_digest:
            return None
        presented = head.get(b"x-api-key")
        scheme, _, token = (head.get(b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            presented = token.strip(b" ")
        if not presented:
            return None
        digest = hashlib.sha256(presented).hexdigest()
        return self._by_digest.get(digest)
