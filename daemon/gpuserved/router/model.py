"""One served name: its replicas, the choice among them, and the queue of those who wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gpuserved.api.routing import ModelRoute
from gpuserved.core.balance import Rotation
from gpuserved.core.fairqueue import FairQueue
from gpuserved.core.policy.base import UNTIED, Ask, Candidate, Policy, Ties, ramp
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.make import make_policy
from gpuserved.core.policy.prefill import Queued
from gpuserved.router.http import errors
from gpuserved.router.replica import Replica

_TAKES = frozenset({Rotation.IN, Rotation.PROBATION})


@dataclass(frozen=True, eq=False)
class Entry:
    """A replica as one model lists it."""

    replica: Replica
    upstream_model: str | None
    weight: float = 1.0
    slow_start_s: float = 0.0


@dataclass(frozen=True, eq=False)
class _Waiter:
    """A request in the queue."""

    future: asyncio.Future[Entry]
    avoid: frozenset[Replica]
    ask: Ask


class Lease:
    """One request in flight on one replica; released exactly once."""

    __slots__ = ("_entry", "_queued", "_released", "model")

    def __init__(self, model: Model, entry: Entry, ask: Ask) -> None:
        """Of what the model chose, and counted."""
        self.model = model
        self._entry = entry
        self._released = False
        self._queued: Queued | None = None
        if ask.prefix is not None:
            self._queued = entry.replica.sent(ask.prefix, model.loop.time())
        elif model.ties is Ties.PREFIX:
            entry.replica.mirror.unread()

    @property
    def replica(self) -> Replica:
        """Where it runs."""
        return self._entry.replica

    @property
    def upstream_model(self) -> str | None:
        """What this replica calls the model, where that differs."""
        return self._entry.upstream_model

    def begun(self, *, streams: bool) -> None:
        """Its answer has begun: the prompt is computed."""
        if self._queued is not None:
            self._entry.replica.prefill.begun(self._queued, self.model.loop.time(), streams=streams)
            self._queued = None

    def release(self) -> None:
        """The request is over on this replica."""
        if self._released:
            return
        self._released = True
        self.begun(streams=False)
        self._entry.replica.gave_back()
        self.model.pump()


class Model:
    """Profiles that share the name are merged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        """At hand, for the clock: before Python 3.12 asking which loop runs is a system call."""
        self.suspects = asyncio.Lock()
        """Held by the one suspect of a second crash that may run."""
        self.session_header = b""
        self._policy: Policy = LeastInflight()
        self._settings = ("", 0.0)
        """What the policy was made from."""
        self._queue_max = 512
        self.queue_timeout_s = 600.0
        self._entries: Sequence[Entry] = ()
        self._waiters: FairQueue[_Waiter] = FairQueue()
        self._removed = False

    def apply(self, routes: Sequence[ModelRoute], entries: Sequence[Entry]) -> None:
        """Of profiles that share a name the first one says how to choose; a policy that stays keeps what it remembers. Who waits
        is served by the next `pump`.
        """
        first = routes[0]
        settings = (first.policy, first.load_factor)
        if settings != self._settings:
            self._settings = settings
            self._policy = make_policy(first.policy, load_factor=first.load_factor)
        self.session_header = first.session_header.encode()
        self._queue_max = max(r.queue for r in routes)
        self.queue_timeout_s = max(r.queue_timeout_s for r in routes)
        self._entries = entries

    def remove(self) -> None:
        """It is served no longer: those that wait are told now, and not when their time in the queue is over."""
        self._removed = True
        self._entries = ()
        while (waiter := self._waiters.head()) is not None:
            self._waiters.pop()
            if not waiter.future.done():
                waiter.future.set_exception(errors.removed(self.name))

    @property
    def ties(self) -> Ties:
        """What of a request its policy wants to know."""
        return self._policy.ties

    @property
    def replicas(self) -> list[Replica]:
        """Those that serve it."""
        return [entry.replica for entry in self._entries]

    @property
    def size(self) -> int:
        """How many replicas serve it."""
        return len(self._entries)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiters)

    def usable(self) -> bool:
        """Could a request go somewhere now?"""
        return any(e.replica.rotation in _TAKES or e.replica.doubtful for e in self._entries)

    def other_ready(self, avoid: frozenset[Replica]) -> bool:
        """Is a replica in rotation that is none of these?"""
        return any(e.replica not in avoid and e.replica.rotation in _TAKES for e in self._entries)

    def lists(self, replica: Replica) -> bool:
        """Is it one of its replicas?"""
        return any(entry.replica is replica for entry in self._entries)

    # Choosing.

    def _even(self, now: float) -> list[int] | None:
        """In-flight counts, where they are all that tells the replicas apart."""
        counts: list[int] = []
        for entry in self._entries:
            replica = entry.replica
            if replica.row.state is not Rotation.IN or not replica.admit or entry.weight != 1.0:
                return None
            if now - replica.in_since < entry.slow_start_s:
                return None
            counts.append(replica.load)
        return counts or None

    def _pick(self, avoid: frozenset[Replica], ask: Ask) -> Entry | None:
        now = self.loop.time()
        policy = self._policy
        if type(policy) is LeastInflight and not avoid:
            counts = self._even(now)
            if counts is not None:
                return _taken(self._entries[policy.choose_even(counts)])
        index = policy.choose(ask, [_candidate(entry, avoid, now) for entry in self._entries])
        return None if index is None else _taken(self._entries[index])

    def lease_on(self, replica: Replica, ask: Ask = UNTIED, *, only: bool = False) -> Lease | None:
        """A lease on just this replica; None: it takes no request now.

        :param only: nobody else can answer, so one that was ejected alive is asked all the same.
        """
        for entry in self._entries:
            if entry.replica is replica:
                takes = replica.rotation in _TAKES or (only and replica.doubtful)
                return Lease(self, _taken(entry), ask) if takes else None
        return None

    def lease_at_once(self, ask: Ask) -> Lease | None:
        """A lease on a replica that takes a request now; None: this one must wait, or be refused."""
        entry = None if self._waiters else self._pick(frozenset(), ask)
        return Lease(self, entry, ask) if entry is not None else None

    async def lease(
        self, *, ask: Ask, avoid: frozenset[Replica], deadline: float | None, again: bool, tenant: str
    ) -> Lease:
        """A lease on a replica, at once or after waiting for one.

        :param ask: what ties the request to a replica, for the policy.
        :param deadline: loop time at which the client gives up, if it said so.
        :param again: a replay: it was admitted before, so it goes to the front and the queue's bound is not its concern.
        :param tenant: whose turn in the queue it takes: the API key's name or the client's address.
        :raises HttpError: 429 when too many wait, 503 when none became ready in time, or the model is no longer served.
        """
        if again or not self._waiters:
            entry = self._pick(avoid, ask)
            if entry is not None:
                return Lease(self, entry, ask)
        if self._removed:
            raise errors.removed(self.name)
        if not again:
            self._make_room(tenant)
        until = self.loop.time() + self.queue_timeout_s
        if deadline is not None:
            until = min(until, deadline)
        waiter = _Waiter(self.loop.create_future(), avoid, ask)
        if again:
            self._waiters.push_front(waiter)
        else:
            self._waiters.push(tenant, waiter)
        try:
            await asyncio.wait({waiter.future}, timeout=max(0.0, until - self.loop.time()))
            if waiter.future.done():
                return Lease(self, waiter.future.result(), ask)
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                Lease(self, waiter.future.result(), UNTIED).release()
            raise
        finally:
            if not waiter.future.done():
                waiter.future.cancel()
                self._waiters.remove(tenant, waiter)
        raise errors.none_ready(self.name)

    def _make_room(self, tenant: str) -> None:
        """:raises HttpError: 429: the queue is full, and nobody holds more of it than `tenant`."""
        if len(self._waiters) < self._queue_max:
            return
        displaced = self._waiters.displace(tenant)
        if displaced is None:
            raise errors.queue_full(self.name)
        if not displaced.future.done():
            displaced.future.set_exception(errors.queue_full(self.name))

    def pump(self) -> None:
        """Serve those who wait, everybody in turn, as long as a replica takes them."""
        while (waiter := self._waiters.head()) is not None:
            if waiter.future.done():
                self._waiters.pop()
                continue
            entry = self._pick(waiter.avoid, waiter.ask)
            if entry is None:
                return
            self._waiters.pop()
            waiter.future.set_result(entry)


def _candidate(entry: Entry, avoid: frozenset[Replica], now: float) -> Candidate:
    replica = entry.replica
    return Candidate(
        replica.load, replica.rotation, replica in avoid, entry.weight,
        ramp(now - replica.in_since, entry.slow_start_s), replica.identity, replica.mirror, replica.prefill.tokens(now), replica.doubtful,
    )  # fmt: skip


def _taken(entry: Entry) -> Entry:
    entry.replica.took()
    return entry
