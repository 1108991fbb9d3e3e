"""Who gets which replica, and who waits for one."""

from __future__ import annotations

import asyncio

from gpuserved.core.balance import Candidate, Rotation, choose
from gpuserved.router import errors
from gpuserved.router.replica import Replica
from gpuserved.router.tables import Entry, Model, Waiter


class Lease:
    """One request in flight on one replica; released exactly once."""

    __slots__ = ("_entry", "_model", "_released")

    def __init__(self, model: Model, entry: Entry) -> None:
        self._model = model
        self._entry = entry
        self._released = False

    @property
    def replica(self) -> Replica:
        """Where it runs."""
        return self._entry.replica

    @property
    def upstream_model(self) -> str | None:
        """What this replica calls the model, where that differs."""
        return self._entry.upstream_model

    def release(self) -> None:
        """The request is over on this replica."""
        if self._released:
            return
        self._released = True
        self._entry.replica.in_flight -= 1
        if self._model.waiters:
            pump(self._model)


def _pick(model: Model, avoid: frozenset[Replica]) -> Entry | None:
    candidates = [
        Candidate(e.replica.in_flight, e.replica.rotation, e.replica in avoid) for e in model.entries
    ]
    index = choose(model.policy, candidates, model.cursor)
    if index is None:
        return None
    model.cursor = index + 1
    return _taken(model.entries[index])


def _taken(entry: Entry) -> Entry:
    entry.replica.in_flight += 1
    entry.replica.requests_total += 1
    return entry


def pump(model: Model) -> None:
    """Serve those who wait, first come first served, as long as a replica takes them."""
    while model.waiters:
        waiter = model.waiters[0]
        if waiter.future.done():
            model.waiters.popleft()
            continue
        entry = _pick(model, waiter.avoid)
        if entry is None:
            return
        model.waiters.popleft()
        waiter.future.set_result(entry)


def other_ready(model: Model, avoid: frozenset[Replica]) -> bool:
    """Is a replica in rotation that has not failed this request?"""
    return any(
        e.replica not in avoid and e.replica.rotation in {Rotation.IN, Rotation.PROBATION}
        for e in model.entries
    )


def lease_of(model: Model, replica: Replica | None) -> Lease | None:
    """A lease on just this replica; None: it takes no request now."""
    for entry in model.entries:
        if entry.replica is replica and entry.replica.rotation in {Rotation.IN, Rotation.PROBATION}:
            return Lease(model, _taken(entry))
    return None


async def acquire(
    model: Model,
    *,
    avoid: frozenset[Replica] = frozenset(),
    deadline: float | None = None,
    again: bool = False,
) -> Lease:
    """A lease on a replica, at once or after waiting for one.

    :param deadline: loop time at which the client gives up, if it said so.
    :param again: a replay: it was admitted before, so it goes to the front and the queue's bound is not its concern.
    :raises HttpError: 429 when too many wait, 503 when none became ready in time.
    """
    if again or not model.waiters:
        entry = _pick(model, avoid)
        if entry is not None:
            return Lease(model, entry)
    if not again and len(model.waiters) >= model.queue_max:
        raise errors.queue_full(model.name)
    loop = asyncio.get_running_loop()
    until = loop.time() + model.queue_timeout_s
    if deadline is not None:
        until = min(until, deadline)
    waiter = Waiter(loop.create_future(), avoid)
    if again:
        model.waiters.appendleft(waiter)
    else:
        model.waiters.append(waiter)
    try:
        await asyncio.wait({waiter.future}, timeout=max(0.0, until - loop.time()))
        if waiter.future.done():
            return Lease(model, waiter.future.result())
    except asyncio.CancelledError:
        if waiter.future.done() and not waiter.future.cancelled():
            Lease(model, waiter.future.result()).release()
        raise
    finally:
        if not waiter.future.done():
            waiter.future.cancel()
            if waiter in model.waiters:
                model.waiters.remove(waiter)
    raise errors.none_ready(model.name)
