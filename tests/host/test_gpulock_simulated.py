"""Leases under any order of takes, deaths and adoptions, of two daemons: the kernel's locks against books kept beside them.

A replica's shim and the daemon that started it hold descriptors of the same lease; here both are in this process, as duplicates.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpuserved.host.gpulock import UNITS, GpuHeld, GpuLocks, release

GPUS = ("GPU-a", "GPU-b")
DAEMONS = ("/run/one", "/run/two")
FRACTIONS = (1.0, 1.0, 0.5, 0.5, 0.25, 1 / 3, 0.7, 0.0001, 1e-9)
gpus = st.lists(st.sampled_from(GPUS), min_size=1, unique=True)


@dataclass
class Leased:
    """One replica's lease, in the books."""

    daemon: str
    replica: str
    uuids: tuple[str, ...]
    units: int
    daemons_fds: list[int]
    shims_fds: list[int]

    @property
    def lives(self) -> bool:
        return bool(self.daemons_fds or self.shims_fds)


class LeasedHost(RuleBasedStateMachine):
    """Two daemons on one host with two GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="gsl-"))
        self.locks = {daemon: GpuLocks(self.folder, daemon) for daemon in DAEMONS}
        self.books: list[Leased] = []
        self.count = 0

    @initialize(
        starts=st.lists(st.tuples(st.sampled_from(DAEMONS), st.sampled_from(FRACTIONS), gpus), max_size=5)
    )
    def begin(self, starts: list[tuple[str, float, list[str]]]) -> None:
        for each in starts:
            self.start_one(*each)

    def free(self, uuid: str) -> int:
        return UNITS - sum(each.units for each in self.books if uuid in each.uuids)

    @rule(daemon=st.sampled_from(DAEMONS), fraction=st.sampled_from(FRACTIONS), uuids=gpus)
    def start(self, daemon: str, fraction: float, uuids: list[str]) -> None:
        self.start_one(daemon, fraction, uuids)

    def start_one(self, daemon: str, fraction: float, uuids: list[str]) -> None:
        """All of its GPUs, or none: what is short is named, and nothing is kept."""
        units = max(1, round(fraction * UNITS))
        short = [uuid for uuid in uuids if self.free(uuid) < units]
        name = f"r-{self.count}"
        self.count += 1
        if short:
            with pytest.raises(GpuHeld, match=f"GPU {short[0]} is leased by r-"):
                self.locks[daemon].take(uuids, fraction, name, "me")
            return
        fds = self.locks[daemon].take(uuids, fraction, name, "me")
        self.books.append(Leased(daemon, name, tuple(uuids), units, fds, [os.dup(fd) for fd in fds]))

    def drawn(self, data: st.DataObject) -> Leased:
        return self.books[data.draw(st.integers(0, len(self.books) - 1))]

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def the_shim_dies(self, data: st.DataObject) -> None:
        """The lease lasts on where its daemon has not let go of it: it may start the replica again."""
        lease = self.drawn(data)
        release(lease.shims_fds)
        lease.shims_fds = []
        self.forget()

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def the_daemon_lets_go(self, data: st.DataObject) -> None:
        lease = self.drawn(data)
        release(lease.daemons_fds)
        lease.daemons_fds = []
        self.forget()

    @rule(daemon=st.sampled_from(DAEMONS))
    def the_daemon_dies_and_another_adopts_what_runs(self, daemon: str) -> None:
        for lease in self.books:
            if lease.daemon == daemon:
                release(lease.daemons_fds)
                lease.daemons_fds = []
        self.locks[daemon] = GpuLocks(self.folder, daemon)
        self.forget()

    @rule(uuid=st.sampled_from(GPUS))
    def somebody_tidies_up(self, uuid: str) -> None:
        """The file of a GPU that nobody holds: the next one makes it anew."""
        if self.free(uuid) == UNITS:
            (self.folder / f"gpuserve-{uuid}.lock").unlink(missing_ok=True)

    def forget(self) -> None:
        self.books = [each for each in self.books if each.lives]

    @invariant()
    def no_gpu_is_leased_beyond_the_whole_of_it(self) -> None:
        for uuid in GPUS:
            holders = [each for each in self.books if uuid in each.uuids]
            assert sum(each.units for each in holders) <= UNITS
            if any(each.units == UNITS for each in holders):
                assert len(holders) == 1, "the whole of it is one's alone"

    @invariant()
    def each_daemon_sees_what_the_other_holds_and_who(self) -> None:
        for daemon, locks in self.locks.items():
            for uuid in GPUS:
                theirs = [each for each in self.books if uuid in each.uuids and each.daemon != daemon]
                seen = locks.held_by_others(uuid)
                assert round(sum(held.fraction for held in seen) * UNITS) == sum(
                    each.units for each in theirs
                )
                assert {held.holder for held in seen} == {f"{each.replica} of me" for each in theirs}

    def teardown(self) -> None:
        """Nothing is left of the dead: each GPU can be had whole."""
        try:
            for lease in self.books:
                release([*lease.daemons_fds, *lease.shims_fds])
            release(self.locks[DAEMONS[0]].take(GPUS, 1.0, "last", "me"))
        finally:
            shutil.rmtree(self.folder)


TestLeasedHost = LeasedHost.TestCase
TestLeasedHost.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
