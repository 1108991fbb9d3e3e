"""Who gets which replica, and who waits for one."""

from __future__ import annotations

import asyncio

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import UNTIED, Ask, Candidate, Ties, ramp
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.prefill import Queued
from gpuserved.router.http import errors
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Entry, Model, Waiter


class Lease:
    """One request in flight on one replica; released exactly once."""

    __slots__ = ("_entry", "_model", "_queued", "_released")

    def __init__(self, model: Model, entry: Entry, ask: Ask) -> None:
        """Count what `_pick` chose."""
        self._model = model
        self._entry = entry
        self._released = False
        self._queued: Queued | None = None
        if ask.prefix is not None:
            self._queued = entry.replica.sent(ask.prefix, asyncio.get_running_loop().time())
        elif model.policy.ties is Ties.PREFIX:
            entry.replica.mirror.unread()

    @property
    def replica(self) -> Replica:
        """Where it runs."""
        return self._entry.replica

    @property
    def model(self) -> Model:
        """What it serves there."""
        return self._model

    @property
    def upstream_model(self) -> str | None:
        """What this replica calls the model, where that differs."""
        return self._entry.upstream_model

    def begun(self, *, streams: bool) -> None:
        """Its answer has begun: the prompt is computed."""
        if self._queued is not None:
            self._entry.replica.prefill.begun(
                self._queued, asyncio.get_running_loop().time(), streams=streams
            )
            self._queued = None

    def release(self) -> None:
        """The request is over on this replica."""
        if self._released:
            return
        self._released = True
        self.begun(streams=False)
        self._entry.replica.gave_back()
        if self._model.waiters:
            pump(self._model)


def _candidate(entry: Entry, avoid: frozenset[Replica], now: float) -> Candidate:
    replica = entry.replica
    return Candidate(
        replica.load, replica.rotation, replica in avoid, entry.weight,
        ramp(now - replica.in_since, entry.slow_start_s), replica.identity, replica.mirror, replica.prefill.tokens(now), replica.doubtful,
    )  # fmt: skip


def _even(entries: list[Entry], now: float) -> list[int] | None:
    """In-flight counts, where they are all that tells the replicas apart."""
    counts: list[int] = []
    for entry in entries:
        replica = entry.replica
        if replica.row.state is not Rotation.IN or not replica.admit or entry.weight != 1.0:
            return None
        if now - replica.in_since < entry.slow_start_s:
            return None
        counts.append(replica.load)
    return counts or None


def _pick(model: Model, avoid: frozenset[Replica], ask: Ask) -> Entry | None:
    now = model.loop.time()
    policy = model.policy
    if type(policy) is LeastInflight and not avoid:
        counts = _even(model.entries, now)
        if counts is not None:
            return _taken(model.entries[policy.choose_even(counts)])
    index = model.policy.choose(ask, [_candidate(entry, avoid, now) for entry in model.entries])
    return None if index is None else _taken(model.entries[index])


def _taken(entry: Entry) -> Entry:
    entry.replica.took()
    entry.replica.requests_total += 1
    return entry


def pump(model: Model) -> None:
    """Serve those who wait, everybody in turn, as long as a replica takes them."""
    while (waiter := model.waiters.head()) is not None:
        if waiter.future.done():
            model.waiters.pop()
            continue
        entry = _pick(model, waiter.avoid, waiter.ask)
        if entry is None:
            return
        model.waiters.pop()
        waiter.future.set_result(entry)


def _make_room(model: Model, tenant: str) -> None:
    """:raises HttpError: 429: the queue is full, and nobody holds more of it than `tenant`."""
    if len(model.waiters) < model.queue_max:
        return
    displaced = model.waiters.displace(tenant)
    if displaced is None:
        raise errors.queue_full(model.name)
    if not displaced.future.done():
        displaced.future.set_exception(errors.queue_full(model.name))


def other_ready(model: Model, avoid: frozenset[Replica]) -> bool:
    """Is a replica in rotation that has not failed this request?"""
    return any(
        e.replica not in avoid and e.replica.rotation in {Rotation.IN, Rotation.PROBATION}
        for e in model.entries
    )


def lease_of(model: Model, replica: Replica | None, ask: Ask = UNTIED, *, only: bool = False) -> Lease | None:
    """A lease on just this replica; None: it takes no request now.

    :param only: nobody else can answer, so one that was ejected alive is asked all the same.
    """
    for entry in model.entries:
        if entry.replica is replica:
            takes = entry.replica.rotation in {Rotation.IN, Rotation.PROBATION}
            return Lease(model, _taken(entry), ask) if takes or (only and entry.replica.doubtful) else None
    return None


def at_once(model: Model, ask: Ask) -> Lease | None:
    """A lease on a replica that takes a request now; None: this one must wait, or be refused."""
    entry = None if model.waiters else _pick(model, frozenset(), ask)
    return Lease(model, entry, ask) if entry is not None else None


async def acquire(
    model: Model,
    *,
    ask: Ask = UNTIED,
    avoid: frozenset[Replica] = frozenset(),
    deadline: float | None = None,
    again: bool = False,
    tenant: str = "",
) -> Lease:
    """A lease on a replica, at once or after waiting for one.

    :param tenant: whose turn in the queue it takes: the API key's name or the client's address.
    :param ask: what ties the request to a replica, for the model's policy.
    :param deadline: loop time at which the client gives up, if it said so.
    :param again: a replay: it was admitted before, so it goes to the front and the queue's bound is not its concern.
    :raises HttpError: 429 when too many wait, 503 when none became ready in time, or the model is no longer served.
    """
    if again or not model.waiters:
        entry = _pick(model, avoid, ask)
        if entry is not None:
            return Lease(model, entry, ask)
    if model.removed:
        raise errors.removed(model.name)
    if not again:
        _make_room(model, tenant)
    loop = asyncio.get_running_loop()
    until = loop.time() + model.queue_timeout_s
    if deadline is not None:
        until = min(until, deadline)
    waiter = Waiter(loop.create_future(), avoid, ask, tenant)
    if again:
        model.waiters.push_front(waiter)
    else:
        model.waiters.push(tenant, waiter)
    try:
        await asyncio.wait({waiter.future}, timeout=max(0.0, until - loop.time()))
        if waiter.future.done():
            return Lease(model, waiter.future.result(), ask)
    except asyncio.CancelledError:
        if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
            Lease(model, waiter.future.result(), UNTIED).release()
        raise
    finally:
        if not waiter.future.done():
            waiter.future.cancel()
            model.waiters.remove(tenant, waiter)
    raise errors.none_ready(model.name)
