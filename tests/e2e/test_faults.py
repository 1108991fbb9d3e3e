"""Replicas die under load, and clients that had not begun to hear an answer never notice.

The tests run in order on one fleet: each begins with two READY replicas and leaves two behind.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import psutil
from tests.e2e.box import Json, kill, until
from tests.e2e.clients import PlainLoad, Stream, open_streams
from tests.e2e.texts import SERVED, Fleet

STREAMS = 16
T = TypeVar("T")


@dataclass
class RotationWatch:
    """Notes when the router stopped choosing a replica."""

    fleet: Fleet
    replica: str
    left_at: float | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        while self.left_at is None and not self._ending.wait(0.02):
            if self.fleet.rotation(self.replica) not in {"in", "probation"}:
                self.left_at = time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[RotationWatch]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join(10)

    def seconds_after(self, moment: float) -> float:
        """From `moment` to the first look that found the replica out of rotation."""
        left_at = until(lambda: self.left_at, f"{self.replica} out of rotation", 30, every_s=0.01)
        return left_at - moment


def both_ready(fleet: Fleet) -> None:
    for replica in ("tiny-0", "tiny-1"):
        fleet.wait_state(replica, "READY", fleet.flavour.start_s, rotation="in")


def judge(streams: list[Stream], victim: str) -> None:
    """Streams on the victim were told, those elsewhere are whole, and there were some of both."""
    assert {stream.replica for stream in streams} == {"tiny-0", "tiny-1"}
    for stream in streams:
        ended_well = stream.told if stream.replica == victim else stream.whole
        assert ended_well, (victim, stream)


def check_replacement(fleet: Fleet, before: Json, old_tree: list[psutil.Process], cause: str) -> None:
    """The old tree is gone; a new process serves; the status line and the logs say what happened."""
    until(lambda: not any(p.is_running() for p in old_tree), f"old tree of {before['id']} gone", 30)
    after = fleet.wait_restarted(before, fleet.flavour.start_s)
    assert after["restarts"] == before["restarts"] + 1
    assert after["pid"] != before["pid"]
    assert re.search(cause, after["reason"] or ""), after["reason"]
    assert f"pid={before['pid']}" in fleet.ok("logs", before["id"], "--previous", "-n", "100000")
    assert f"pid={before['pid']}" not in fleet.ok("logs", before["id"], "-n", "100000")
    both_ready(fleet)


def run_fault(fleet: Fleet, victim: str, strike: Callable[[Json], T]) -> tuple[Json, list[psutil.Process], T]:
    """Strike `victim` while 16 streams and a plain load run; all clients must end as promised.

    :param strike: called with the victim's row; its answer is handed back.
    """
    both_ready(fleet)
    before = fleet.replica(victim)
    fleet.remember()
    old_tree = fleet.tree(before["shim_pid"])
    assert len(old_tree) >= 3, "shim, API process and engine"
    with PlainLoad(fleet.endpoint, SERVED) as load:
        streams = open_streams(fleet.endpoint, SERVED, STREAMS, fleet.flavour.stream_tokens)
        streams.wait_begun()
        load.reach(4)
        struck = strike(before)
        judge(streams.join(), victim)
        load.reach(10)
    return before, old_tree, struck


def test_the_api_process_is_killed(fleet: Fleet) -> None:
    def strike(row: Json) -> float:
        with RotationWatch(fleet, row["id"]).watching() as watch:
            return watch.seconds_after(kill(row["pid"]))

    before, old_tree, seconds = run_fault(fleet, "tiny-0", strike)
    assert seconds < 1.0
    check_replacement(fleet, before, old_tree, cause="SIGKILL")


def test_the_engine_core_is_killed(fleet: Fleet) -> None:
    def strike(row: Json) -> float:
        core = fleet.engine_core(row)
        with RotationWatch(fleet, row["id"]).watching() as watch:
            return watch.seconds_after(kill(core.pid))

    before, old_tree, seconds = run_fault(fleet, "tiny-1", strike)
    assert seconds < 1.0
    check_replacement(fleet, before, old_tree, cause=r"(?i)engine")


def test_the_engine_core_hangs(fleet: Fleet) -> None:
    def strike(row: Json) -> None:
        core = fleet.engine_core(row)
        kill(core.pid, signal.SIGSTOP)
        until(lambda: fleet.rotation(row["id"]) != "in", "hung replica out of rotation", 30)

    before, old_tree, _ = run_fault(fleet, "tiny-0", strike)
    check_replacement(fleet, before, old_tree, cause=r"(?i)hung|without a step|no progress|stopped stepping")


def test_the_api_process_hangs(fleet: Fleet) -> None:
    """A stopped API process accepts connections and answers nothing, not even /health."""
    both_ready(fleet)
    before = fleet.replica("tiny-1")
    old_tree = fleet.tree(before["shim_pid"])
    kill(before["pid"], signal.SIGSTOP)
    check_replacement(fleet, before, old_tree, cause=r"(?i)health|liveness|answer|hung|without a step")


def idle(fleet: Fleet) -> bool:
    stats = fleet.router_stats()
    return stats is not None and all(row["in_flight"] == 0 for row in stats["replicas"])


def test_a_client_that_leaves_frees_its_place(fleet: Fleet) -> None:
    both_ready(fleet)
    streams = open_streams(fleet.endpoint, SERVED, 1, fleet.flavour.stream_tokens, hang_up_after=3)
    streams.join()
    gone_at = time.monotonic()
    until(lambda: idle(fleet), "in-flight counts back to 0", 5)
    assert time.monotonic() - gone_at < 1.0
