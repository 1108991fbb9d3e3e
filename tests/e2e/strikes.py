"""What strikes a fleet under load, and judges how its clients and its replicas came through."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
from tests.e2e.box import Box, Json, until
from tests.e2e.clients import PlainLoad, Stream, open_streams
from tests.e2e.texts import SERVED, Fleet
from tests.faults.table import Measured

from gpuserved.shim.replica import LEARN_AFTER_S

STREAMS = 16
LOOKS_AFTER_S = tuple(age for age in LEARN_AFTER_S if age >= 2.0)
"""When a shim looks at what its tree maps, after the start, from where engines have loaded."""
LATE_S = 0.0 if os.environ.get("GPUSERVE_TEST_SLOW") else 15.0
"""How much later than promised a quick test may find something, which shares its processors with others. That it was found by what
should find it, and not by a slower way, is in the reason that `Struck.replaced` looks at; `make faults` asks for what is promised.
"""


@dataclass
class RotationWatch:
    """Notes when the router stopped choosing a replica."""

    fleet: Box
    replica: str
    left_at: float | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        while self.left_at is None and not self._ending.wait(0.02):
            # None: the router did not answer, which says nothing about the replica.
            if self.fleet.rotation(self.replica) not in {None, "in", "probation"}:
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
        left_at = until(lambda: self.left_at, f"{self.replica} out of rotation", 60, every_s=0.01)
        return left_at - moment


def both_ready(fleet: Fleet) -> None:
    for replica in ("tiny-0", "tiny-1"):
        fleet.wait_state(replica, "READY", fleet.flavour.start_s, rotation="in")


def mappings_known(row: Json) -> None:
    """Wait until the shim of a READY replica has looked at what its tree maps: an engine that is killed takes its mappings along."""
    ready_after_s = row["state_since"] - row["started_at"]
    look_after_s = next((age for age in LOOKS_AFTER_S if age > ready_after_s), ready_after_s)
    until(lambda: time.time() > row["started_at"] + look_after_s + 1, "the shim has looked at the tree", 60)


def judge(streams: list[Stream], victim: str) -> None:
    """Streams on the victim were told, those elsewhere are whole, and there were some of both."""
    assert {stream.replica for stream in streams} == {"tiny-0", "tiny-1"}
    for stream in streams:
        ended_well = stream.told if stream.replica == victim else stream.whole
        assert ended_well, (victim, stream)


@dataclass(frozen=True)
class Struck:
    """One replica that was struck: its row and tree from before, and when."""

    fleet: Fleet
    before: Json
    tree: list[psutil.Process]
    at: float
    measured: Measured

    def replaced(self, cause: str, within_s: float = 30) -> Json:
        """The old tree is gone; a new process serves; the status line and the logs say what happened."""
        fleet, before = self.fleet, self.before
        until(lambda: not self._left(), f"old tree of {before['id']} gone", within_s)
        after = fleet.wait_restarted(before, fleet.flavour.start_s)
        both_ready(fleet)
        self.measured.recover_s = time.monotonic() - self.at
        self.measured.left = self._left()
        assert after["restarts"] == before["restarts"] + 1
        assert after["pid"] != before["pid"]
        assert re.search(cause, after["reason"] or ""), after["reason"]
        assert f"pid={before['pid']}" in fleet.ok("logs", before["id"], "--previous", "-n", "100000")
        assert f"pid={before['pid']}" not in fleet.ok("logs", before["id"], "-n", "100000")
        return after

    def _left(self) -> int:
        return sum(process.is_running() for process in self.tree)


def strike(
    fleet: Fleet, victim: str, blow: Callable[[Json], float], measured: Measured, detect_s: float
) -> Struck:
    """Strike `victim` while 16 streams and a plain load run; all clients must end as promised.

    :param blow: called with the victim's row; the time (monotonic) of the blow is its answer.
    :param detect_s: the victim must be out of rotation by then, and `LATE_S`.
    """
    both_ready(fleet)
    before = fleet.replica(victim)
    mappings_known(before)
    fleet.remember()
    tree = fleet.tree(before["shim_pid"])
    assert len(tree) >= 3, "shim, API process and engine"
    with PlainLoad(fleet.endpoint, SERVED) as load:
        streams = open_streams(fleet.endpoint, SERVED, STREAMS, fleet.flavour.stream_tokens)
        streams.wait_begun()
        load.reach(4)
        with RotationWatch(fleet, victim).watching() as watch:
            at = blow(before)
            measured.detect_s = watch.seconds_after(at)
        ended = streams.join(
            max(90.0, fleet.flavour.start_s)
        )  # two cores carry the streams and the next start
        judge(ended, victim)
        load.reach(10)
    measured.failed, measured.answered = len(load.failures), load.answered
    measured.told = sum(stream.told for stream in ended)
    assert measured.detect_s < detect_s + LATE_S
    return Struck(fleet, before, tree, at, measured)
