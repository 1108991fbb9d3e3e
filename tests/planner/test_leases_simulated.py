"""Who holds which part of which GPU, over any order of applies, removals, deaths of daemons, quarantines and other daemons' leases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.planner import configs

from gpuserved.api.errors import Refused
from gpuserved.core.placement import Lease
from gpuserved.core.profile import Profile
from gpuserved.planning.arrange import Arranged, Inputs, Wanted, arrange

NAMES = ("a", "b", "c")
profiles = st.builds(
    lambda replicas, size, share: configs.profile(
        replicas=replicas, tensor_parallel_size=size, gpu_share=share, flags={}
    ),
    st.none() | st.integers(0, 3), st.integers(1, 3), st.sampled_from([None, None, 0.25, 0.3, 0.5]),
)  # fmt: skip


class LeasedGpus(RuleBasedStateMachine):
    """One daemon's profiles on a box that it shares with another daemon."""

    @initialize(
        count=st.integers(1, 5), linked=st.booleans(), first=st.lists(st.tuples(st.sampled_from(NAMES), profiles), max_size=4)
    )  # fmt: skip
    def begin(self, count: int, linked: bool, first: list[tuple[str, Profile]]) -> None:
        self.gpus = configs.host(count, linked=linked)
        self.wanted: dict[str, Wanted] = {}
        self.held: dict[str, tuple[str, ...]] = {}
        self.running: set[str] = set()
        self.others: list[Lease] = []
        self.aside: dict[str, str] = {}
        for name, profile in first:
            self.apply_one(name, profile)

    def arranged(self, wanted: dict[str, Wanted]) -> Arranged:
        held = {name: uuids for name, uuids in self.held.items() if name.rpartition("-")[0] in wanted}
        return arrange(
            wanted, self.gpus, held, {name: Inputs() for name in wanted}, self.others, self.aside,
            waiting=set(held) - self.running,
        )  # fmt: skip

    def settle(self, found: Arranged, wanted: dict[str, Wanted], touched: str = "") -> None:
        """Take over what was arranged; whoever runs on good GPUs, and was not applied anew, stays there."""
        placed = {
            one.replica: tuple(gpu.uuid for gpu in one.gpus)
            for each in found.placements.values()
            for one in each.replicas
        }
        for name in self.running & placed.keys():
            if name.rpartition("-")[0] != touched and not set(self.held[name]) & set(self.aside):
                assert placed[name] == self.held[name], f"{name} was moved"
        assert not {uuid for uuids in placed.values() for uuid in uuids} & set(self.aside)
        solutions = found.solutions()
        self.wanted = {
            name: replace(each, solved=solutions.get(name, each.solved)) for name, each in wanted.items()
        }
        self.held = {each.replica: each.gpu_uuids for each in found.assignments}
        self.running = set(placed)
        self.no_gpu_is_leased_beyond_the_whole_of_it()

    @rule(name=st.sampled_from(NAMES), profile=profiles)
    def apply(self, name: str, profile: Profile) -> None:
        self.apply_one(name, profile)

    def apply_one(self, name: str, profile: Profile) -> None:
        """Placed beside everybody, or refused; then nothing has changed."""
        wanted = {**self.wanted, name: Wanted("", "", replace(profile, name=name, served_name=name))}
        try:
            found = self.arranged(wanted)
        except Refused:
            return
        self.settle(found, wanted, name)
        share = profile.gpu_share or 1.0
        for one in found.placements[name].replicas:
            for gpu in one.gpus:
                theirs = sum(lease.fraction for lease in self.others if lease.uuid == gpu.uuid)
                assert theirs + share <= 1 + 1e-9, "another daemon has that"

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        wanted = {other: each for other, each in self.wanted.items() if other != name}
        self.settle(self.arranged(wanted), wanted)

    @invariant()
    def a_daemon_that_dies_is_followed_by_one_that_adopts_what_runs(self) -> None:
        """It knows what was saved, and what runs: with that it arranges the same."""
        before = dict(self.held)
        self.settle(self.arranged(self.wanted), self.wanted)
        assert {name: self.held[name] for name in before if name in self.held} == before

    @rule(data=st.data())
    def a_gpu_is_set_aside_or_released(self, data: st.DataObject) -> None:
        """Never an error, and nobody's name is lost: whoever cannot be placed waits."""
        uuid = data.draw(st.sampled_from([gpu.uuid for gpu in self.gpus]))
        names = set(self.held)
        if self.aside.pop(uuid, None) is None:
            self.aside[uuid] = "quarantined: fan"
        self.settle(self.arranged(self.wanted), self.wanted)
        assert names <= set(self.held)

    @rule(data=st.data(), fraction=st.sampled_from([0.25, 0.5, 1.0]))
    def another_daemon_takes_what_is_free(self, data: st.DataObject, fraction: float) -> None:
        uuid = data.draw(st.sampled_from([gpu.uuid for gpu in self.gpus]))
        if self.parts()[uuid] + fraction <= 1:
            self.others.append(Lease(uuid, "theirs-0", fraction))

    @rule(data=st.data())
    def another_daemon_lets_go(self, data: st.DataObject) -> None:
        if self.others:
            del self.others[data.draw(st.integers(0, len(self.others) - 1))]

    def parts(self) -> Counter[str]:
        """What is taken of each GPU by what runs, of all daemons."""
        total: Counter[str] = Counter()
        for lease in [*self.others, *self.leases()]:
            total[lease.uuid] += lease.fraction  # type: ignore[assignment]  # a Counter adds fractions as well
        return total

    def leases(self) -> list[Lease]:
        return [
            Lease(uuid, name, self.wanted[name.rpartition("-")[0]].profile.gpu_share or 1.0)
            for name in sorted(self.running)
            for uuid in self.held[name]
        ]

    @invariant()
    def no_gpu_is_leased_beyond_the_whole_of_it(self) -> None:
        mine: Counter[str] = Counter()
        for lease in self.leases():
            mine[lease.uuid] += lease.fraction  # type: ignore[assignment]  # a Counter adds fractions as well
        assert all(part <= 1 + 1e-9 for part in mine.values())

    @invariant()
    def the_whole_of_a_gpu_is_one_replicas_alone(self) -> None:
        leases = self.leases()
        whole = {lease.uuid for lease in leases if lease.fraction == 1.0}
        assert all(len([one for one in leases if one.uuid == uuid]) == 1 for uuid in whole)

    def teardown(self) -> None:
        """With everybody gone the box is as it was: the widest replica there can be is placed."""
        if not hasattr(self, "gpus"):
            return
        found = arrange(
            {"w": Wanted("", "", configs.profile(name="w", tensor_parallel_size=len(self.gpus)))},
            self.gpus,
            {},
        )
        assert len(found.assignments[0].gpu_uuids) == len(self.gpus)


TestLeasedGpus = LeasedGpus.TestCase
TestLeasedGpus.settings = settings(max_examples=120, stateful_step_count=15, deadline=None)
