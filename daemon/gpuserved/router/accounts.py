"""API keys at work: who may ask, how much, and what each has used. A key itself is nowhere; its hash is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from gpuserved.api.routing import ApiKey, KeyStats
from gpuserved.core.limits import DAY_S, MINUTE_S, Bucket
from gpuserved.router.http import errors
from gpuserved.router.http.head import RequestHead

_WORTH_WAITING_S = 60.0
"""The SDKs wait no longer than this for a Retry-After."""


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


class Accounts:
    """All keys of the present table. What a key has used outlives a reload of the file."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Account] = {}
        self._by_name: dict[str, Account] = {}

    def update(self, keys: list[ApiKey], now: float) -> None:
        """These are the keys from now on."""
        known, self._by_name, self._by_digest = self._by_name, {}, {}
        for key in keys:
            account = known.get(key.name) or Account(key.name)
            account.set_limits(key, now)
            self._by_name[key.name] = account
            self._by_digest[key.sha256.lower()] = account

    def __bool__(self) -> bool:
        """Are keys set at all?"""
        return bool(self._by_name)

    def __iter__(self) -> Iterator[Account]:
        return iter(self._by_name.values())

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
