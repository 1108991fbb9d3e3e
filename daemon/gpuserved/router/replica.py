"""The router's view of one start of one replica: in-flight count, rotation, proof of death."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum

from gpuserved.api.routing import ReplicaRoute, RouteStats
from gpuserved.core.balance import CALM_S, Rotation, RotationRow, Signal, rotate
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefill import Prefill, Queued
from gpuserved.core.policy.prefix_key import PrefixKey
from gpuserved.core.policy.session import session_key
from gpuserved.host.deadline import within
from gpuserved.router.counts import Counts
from gpuserved.router.fetch import fetch
from gpuserved.router.peers import Peers
from gpuserved.router.pool import Pool
from gpuserved.router.shimwatch import ShimWatch

PROOF_S = 2.0
"""How long a doubtful failure waits for proof of death; vLLM's API server outlives its engine by about 1.3 s."""
_PROOF_STEP_S = 0.2
_ALIVE_TWICE = 2
"""Health checks answered 200 that count as alive: the first may come before the engine's death is noticed."""

log = logging.getLogger(__name__)


class Health(Enum):
    """What a health check says."""

    OK = "ok"
    FAILING = "failing"
    """503: the engine behind it is dead (vLLM answers so between the engine's death and its own exit)."""
    REFUSED = "refused"
    """Nobody listens."""
    UNCLEAR = "unclear"


async def check(address: str, path: str, timeout_s: float) -> Health:
    """One GET of a health check; never raises."""
    answer = await fetch(address, path, timeout_s)
    if answer.refused:
        return Health.REFUSED
    return {200: Health.OK, 503: Health.FAILING}.get(answer.status or 0, Health.UNCLEAR)


class Replica:
    """One (id, generation). Shared by every model that lists it."""

    def __init__(
        self,
        route: ReplicaRoute,
        *,
        counts: Counts | None,
        peers: Peers,
        on_change: Callable[[Replica], None],
        on_failed: Callable[[Replica, str], None],
        is_last: Callable[[Replica], bool],
    ) -> None:
        """:param counts: where all routers of this machine count, if there are several.
        :param peers: hear of each prompt that is sent there.
        :param on_change: called when it may take requests that it did not take before, or no longer does.
        :param on_failed: told each failure, and its kind as in the control socket's event.
        :param is_last: is there a model that nobody else could serve now?
        """
        self.id = route.id
        self.wire_id = route.id.encode()
        self.generation = route.generation
        self.address = route.address
        self.health_path = route.health_path
        self.cache_metrics = route.cache_metrics
        self.admit = route.admit
        self.row = RotationRow()
        self.in_flight = 0
        """Of this router; `load` counts all routers."""
        self.identity = session_key(route.id)
        """The same for every generation: sessions come back to it."""
        self._cell = None if counts is None else counts.cell(self.identity)
        self.mirror = Mirror()
        """Of this generation: a restart empties the engine's cache."""
        self.prefill = Prefill()
        self.in_since = asyncio.get_running_loop().time()
        """Loop time at which it came, or came back, into rotation: slow start counts from here."""
        self._was_admitted = route.admit
        self._ejected_at = 0.0
        self._calm_since = 0.0
        self.requests_total = 0
        self.failures_total = 0
        self.dead = False
        """Its shim said so: only a new generation comes back."""
        self.pool = Pool(route.address)
        self._on_change = on_change
        self._on_failed = on_failed
        self._is_last = is_last
        self._peers = peers
        self._proof: asyncio.Task[bool] | None = None
        self._died = asyncio.Event()
        self._shim = ShimWatch(route.shim, self._shim_says_dead) if route.shim else None

    @property
    def rotation(self) -> Rotation:
        """As the choice sees it."""
        return self.row.state if self.admit else Rotation.OUT

    @property
    def doubtful(self) -> bool:
        """Ejected, but not proven dead."""
        return self.admit and not self.dead and self.row.doubtful

    @property
    def load(self) -> int:
        """Requests in flight there, of all routers of this machine."""
        return self.in_flight if self._cell is None else self.in_flight + self._cell.others()

    def took(self) -> None:
        """One more in flight."""
        self.requests_total += 1
        self.in_flight += 1
        if self._cell is not None:
            self._cell.add(1)

    def gave_back(self) -> None:
        """One fewer."""
        self.in_flight -= 1
        if self._cell is not None:
            self._cell.add(-1)

    def set_admit(self, admit: bool) -> None:
        """The supervisor admits it, or no longer does."""
        if self.admit != admit:
            self.admit = admit
            if admit and not self._was_admitted:
                self._was_admitted = True
                self.in_since = asyncio.get_running_loop().time()
            self._on_change(self)

    def signal(self, signal: Signal) -> None:
        """Feed the rotation machine; tells whoever waits for a replica."""
        before = self.row.state
        needs_last = signal in {Signal.UNREACHABLE, Signal.CUT, Signal.SERVER_ERROR}
        self.row = rotate(self.row, signal, last=needs_last and self._is_last(self))
        if self.row.state is not before:
            log.warning(
                "replica %s generation %d: %s -> %s (%s)",
                self.id, self.generation, before.value, self.row.state.value, signal.value,
            )  # fmt: skip
            if self.row.state is Rotation.EJECTED:
                self._ejected_at = asyncio.get_running_loop().time()
                self.pool.close()
                self.pool = Pool(self.address)
            elif before is Rotation.PROBATION:
                self.in_since = self._calm_since = asyncio.get_running_loop().time()
            self._on_change(self)

    def failed(self, signal: Signal, kind: str) -> None:
        """A failure of the replica: counted, told to the supervisor. `kind` as in the control socket's event."""
        self.failures_total += 1
        told = self.row.state is Rotation.EJECTED
        self.signal(signal)
        if not told:
            self._on_failed(self, kind)

    def sent(self, key: PrefixKey, now: float) -> Queued:
        """A prompt goes there: the mirror, its queue and the other routers know."""
        self._peers.tell(self.identity, self.generation, key, now)
        return self.prefill.sent(self.mirror.sent(key), now)

    def answered(self) -> None:
        """It answered something that is not a 5xx."""
        if self.row.state is Rotation.PROBATION or self.row.server_errors:
            self.signal(Signal.SUCCESS)

    def closed_early(self) -> None:
        """It ended a connection in the middle: out at once, unless it is the last; proof of death is looked for."""
        self.failed(Signal.CUT, "eof")
        self._start_proof()

    def _start_proof(self) -> asyncio.Task[bool]:
        if self._proof is None or self._proof.done():
            self._proof = asyncio.get_running_loop().create_task(self._prove())
        return self._proof

    def _shim_says_dead(self) -> None:
        if self.dead:
            return
        self.dead = True
        self._died.set()
        self.signal(Signal.DEAD)
        self._on_failed(self, "death")

    async def prove_dead(self) -> bool:
        """Was that failure a death? Asks its health check, listens to its shim, for up to `PROOF_S`; shared by all
        requests that failed together.
        """
        if self.dead:
            return True
        return await asyncio.shield(self._start_proof())

    async def _prove(self) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + PROOF_S
        alive = 0
        while not self._died.is_set() and loop.time() < end:
            health = await check(self.address, self.health_path, min(1.0, PROOF_S / 2))
            if self._died.is_set():
                break
            if health in {Health.REFUSED, Health.FAILING}:
                self.signal(Signal.DEAD)
                return True
            alive += health is Health.OK
            if alive >= _ALIVE_TWICE:
                return False
            try:
                await within(self._died.wait(), _PROOF_STEP_S)
            except (asyncio.TimeoutError, TimeoutError):
                continue
        return self._died.is_set()

    async def probe(self) -> None:
        """An ejected, admitted replica that has sat out its time and is healthy comes back on probation."""
        now = asyncio.get_running_loop().time()
        if self.row.state is Rotation.IN and self.row.ejections and now - self._calm_since >= CALM_S:
            self._calm_since = now
            self.signal(Signal.CALM)
        if self.dead or not self.admit or self.row.state is not Rotation.EJECTED:
            return
        if now - self._ejected_at < self.row.ejection_s:
            return
        if self._shim is not None and not self._shim.connected:
            return
        if await check(self.address, self.health_path, 1.0) is Health.OK and not self.dead:
            self.signal(Signal.PROBE_OK)

    def stats(self) -> RouteStats:
        """The wire form."""
        return RouteStats(
            id=self.id, generation=self.generation, in_flight=self.in_flight, rotation=self.rotation.value,
            requests_total=self.requests_total, failures_total=self.failures_total,
        )  # fmt: skip

    def retire(self) -> None:
        """Gone from the table: no new request; those in flight go on."""
        self.admit = False
        self.pool.close()
        if self._shim is not None:
            self._shim.close()
